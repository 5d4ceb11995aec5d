"""The scheduler: events in, actions out. Pure: it holds no clock, socket or tensor."""
