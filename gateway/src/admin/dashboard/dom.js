/**
 * Elements without markup: every text becomes a text node, so names and errors from the API never become HTML.
 * Updates change only what differs, so focus, selection and open details survive.
 */

/** @typedef {Node | string | number | null | undefined | false} Child */
/** @typedef {Record<string, any>} Attributes */

const SVG = 'http://www.w3.org/2000/svg';

/**
 * Makes an element. `class` and attributes are set as attributes, `on*` as listeners; false and null leave an attribute out.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Attributes | null} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else attr(element, name, value);
  }
  append(element, children);
  return element;
}

/**
 * Makes an SVG element.
 * @param {string} tag
 * @param {Attributes | null} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {SVGElement}
 */
export function s(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes ?? {})) attr(element, name, value);
  append(element, children);
  return /** @type {SVGElement} */ (element);
}

/**
 * @param {Element} element
 * @param {(Child | Child[])[]} children
 */
function append(element, children) {
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/**
 * Sets an attribute if it differs; false, null and undefined remove it.
 * @param {Element} element
 * @param {string} name
 * @param {string | number | boolean | null | undefined} value
 */
export function attr(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
    return;
  }
  const wanted = value === true ? '' : String(value);
  if (element.getAttribute(name) !== wanted) element.setAttribute(name, wanted);
}

/**
 * Sets the text of a node if it differs. The text node stays, and with it a selection around it.
 * @param {Node} node
 * @param {string | number} value
 */
export function text(node, value) {
  const wanted = String(value);
  const first = node.firstChild;
  if (first && first === node.lastChild && first.nodeType === Node.TEXT_NODE) {
    if (first.nodeValue !== wanted) first.nodeValue = wanted;
  } else if (node.textContent !== wanted) {
    node.textContent = wanted;
  }
}

/**
 * Sets a property of the style through the CSSOM, which the content policy allows.
 * @param {HTMLElement | SVGElement} element
 * @param {string} name
 * @param {string} value
 */
export function style(element, name, value) {
  if (element.style.getPropertyValue(name) !== value) element.style.setProperty(name, value);
}

/**
 * Shows or hides an element.
 * @param {HTMLElement} element
 * @param {boolean} visible
 */
export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

/** @type {WeakMap<Element, Map<string, any>>} */
const LISTS = new WeakMap();

/**
 * Makes the children of an element follow a list: one child for each key, which stays the same element while its key is there.
 * @template T
 * @template {{root: Element, update?: (item: T, index: number) => void}} V
 * @param {Element} parent
 * @param {readonly T[]} items
 * @param {(item: T, index: number) => string} keyOf
 * @param {(item: T) => V} create
 */
export function keyed(parent, items, keyOf, create) {
  let views = LISTS.get(parent);
  if (!views) LISTS.set(parent, (views = new Map()));
  /** @type {Map<string, V>} */
  const next = new Map();
  items.forEach((item, index) => {
    let key = keyOf(item, index);
    while (next.has(key)) key += '\u0000';
    next.set(key, views.get(key) ?? create(item));
  });
  for (const [key, view] of views) if (!next.has(key)) view.root.remove();
  const focused = document.activeElement;
  let place = parent.firstElementChild;
  let index = 0;
  for (const view of next.values()) {
    view.update?.(/** @type {T} */ (items[index]), index);
    index += 1;
    if (view.root === place) place = place.nextElementSibling;
    else parent.insertBefore(view.root, place);
  }
  LISTS.set(parent, next);
  // An element that is moved loses the focus.
  if (focused instanceof HTMLElement && focused !== document.activeElement && parent.contains(focused))
    focused.focus({ preventScroll: true });
}

/**
 * Finds an element of the page by its id.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`no element #${id}`);
  return found;
}

let ids = 0;

/**
 * A new id for `aria-labelledby` and the like.
 * @param {string} prefix
 */
export function newId(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}
