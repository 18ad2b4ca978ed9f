// Keys and values of causal attention: the pages of the row's sequence. a: scale as bits, b: positions of a window.
@group(0) @binding(0) var<storage, read> qkv: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> rows: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> pages: array<u32>;
@group(0) @binding(4) var<storage, read> keys: array<u32>;
@group(0) @binding(5) var<storage, read> values: array<u32>;

// First visible position, and number of visible positions.
fn looked_at(r: u32) -> vec2<u32> {
    let count = min(rows[r].y + 1u, p.b);
    return vec2<u32>(rows[r].y + 1u - count, count);
}

// Start of the keys and values of a position.
fn place_of(r: u32, position: u32, kv: u32) -> u32 {
    let page = pages[rows[r].z * PAGES_PER_SLOT + position / PAGE];
    return ((page * PAGE + position % PAGE) * KV_HEADS + kv) * WORDS;
}

fn key(at: u32) -> vec2<f32> {
    return unpack2x16float(keys[at]);
}

fn value(at: u32) -> vec2<f32> {
    return unpack2x16float(values[at]);
}
