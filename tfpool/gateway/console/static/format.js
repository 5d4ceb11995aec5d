// Numbers as people read them. A thing that is not known is a dash.

export const NONE = "–";
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

export function count(value) {
  return whole.format(value);
}

export function counted(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  let size = value;
  let unit = 0;
  while (size >= 1000 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit && size < 10 ? tenth.format(size) : whole.format(size)} ${UNITS[unit]}`;
}

export function rate(value) {
  if (value === null || value === undefined) return NONE;
  if (value === 0) return "0";
  if (value < 0.1) return "< 0.1";
  return value < 10 ? tenth.format(value) : whole.format(value);
}

/** Microseconds. */
export function micros(value) {
  if (value === null || value === undefined) return NONE;
  if (value < 1000) return `${whole.format(value)} µs`;
  if (value < 1e6) return `${value < 1e4 ? tenth.format(value / 1e3) : whole.format(value / 1e3)} ms`;
  return `${value < 1e7 ? tenth.format(value / 1e6) : whole.format(value / 1e6)} s`;
}

export function percent(share) {
  if (share === null || share === undefined) return NONE;
  const value = share * 100;
  return value > 0 && value < 1 ? "< 1 %" : `${whole.format(value)} %`;
}

export function duration(seconds) {
  if (seconds < 1) return micros(seconds * 1e6);
  if (seconds < 60) return seconds < 10 ? `${tenth.format(seconds)} s` : `${whole.format(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function ago(seconds) {
  return seconds < 2 ? "just now" : `${seconds < 60 ? `${Math.floor(seconds)} s` : duration(seconds)} ago`;
}

/** Errors by code, as "3 not found, 1 internal". */
export function errors(codes) {
  return Object.entries(codes).map(([code, number]) => `${count(number)} ${code.toLowerCase().replaceAll("_", " ")}`).join(", ");
}

export function clock(epoch) {
  return new Date(epoch * 1000).toLocaleTimeString("en-GB");
}
