// Rectangles whose areas are given, as square as they can be: for pictures of memory.

/** Places of items `{ size }` (the largest first) in a rectangle of some width and height: `{ item, x, y, w, h }`. */
export function treemap(items, width, height) {
  const total = items.reduce((sum, item) => sum + item.size, 0);
  const found = [];
  if (!total || width <= 0 || height <= 0) return found;
  const scale = (width * height) / total;
  let room = { x: 0, y: 0, w: width, h: height };
  let row = [];
  for (const item of items) {
    const area = item.size * scale;
    const side = Math.min(room.w, room.h);
    if (row.length && worst([...row, { area }], side) > worst(row, side)) {
      room = settle(row, room, found);
      row = [];
    }
    row.push({ item, area });
  }
  settle(row, room, found);
  return found;
}

function worst(row, side) {
  const sum = row.reduce((total, { area }) => total + area, 0);
  const thick = sum / side;
  return Math.max(...row.map(({ area }) => Math.max((thick * thick) / area, area / (thick * thick))));
}

/** Put a row along the shorter side; what room is left. */
function settle(row, room, found) {
  const sum = row.reduce((total, { area }) => total + area, 0);
  const upright = room.w >= room.h;
  const thick = sum / (upright ? room.h : room.w);
  let at = upright ? room.y : room.x;
  for (const { item, area } of row) {
    const long = area / thick;
    found.push(upright ? { item, x: room.x, y: at, w: thick, h: long } : { item, x: at, y: room.y, w: long, h: thick });
    at += long;
  }
  return upright
    ? { x: room.x + thick, y: room.y, w: room.w - thick, h: room.h }
    : { x: room.x, y: room.y + thick, w: room.w, h: room.h - thick };
}
