"""Clients: one core that sees bytes and the time, and thin drivers, synchronous and asyncio, around it."""
