// Making and changing elements. What comes from the pool is only ever put in as text.

const SVG = "http://www.w3.org/2000/svg";

export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else put(node, name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Set an attribute; false and null take it away. Nothing happens where it has that value already. */
export function put(node, name, value) {
  if (value === false || value === null || value === undefined) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
    return;
  }
  const text = value === true ? "" : String(value);
  if (node.getAttribute(name) !== text) node.setAttribute(name, text);
}

export function say(node, text) {
  const value = String(text);
  if (node.textContent !== value) node.textContent = value;
}

/** Give a parent one child an item, in their order; a child stays with its key, and is told its item. */
export function each(parent, items, keyOf, make, tell) {
  const known = parent.known ?? (parent.known = new Map());
  const left = new Set(known.keys());
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    left.delete(key);
    let part = known.get(key);
    if (!part) known.set(key, (part = make(item)));
    tell(part, item);
    if (part.node === at) at = at.nextElementSibling;
    else parent.insertBefore(part.node, at);
  }
  for (const key of left) {
    known.get(key).node.remove();
    known.delete(key);
  }
}

export const byId = (id) => document.getElementById(id);
