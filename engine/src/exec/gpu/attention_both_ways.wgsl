// Keys and values of bidirectional attention: the rows of this step. a: scale as bits.
@group(0) @binding(0) var<storage, read> qkv: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> spans: array<vec2<u32>>;

// First visible row, and number of visible rows.
fn looked_at(r: u32) -> vec2<u32> {
    return vec2<u32>(spans[r].x, spans[r].y - spans[r].x);
}

fn place_of(r: u32, row: u32, kv: u32) -> u32 {
    return (row * (HEADS + 2u * KV_HEADS) + HEADS + kv) * WORDS;
}

fn key(at: u32) -> vec2<f32> {
    return qkv[at];
}

fn value(at: u32) -> vec2<f32> {
    return qkv[at + KV_HEADS * WORDS];
}
