// Rotates queries by their positions in place, stores rotated keys and values in f16, two to a word. One invocation
// for two words of a head, so that values half a head apart are rotated together. a: pairs of a head that are
// rotated, b: whether pairs are values half of them apart, and not neighbours.
@group(0) @binding(0) var<storage, read_write> qkv: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read> rows: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> pages: array<u32>;
@group(0) @binding(3) var<storage, read> rope: array<vec2<f32>>; // cosine, sine
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;

const WORDS = HEAD_DIM / 2u; // of a head
const COUPLES = (WORDS + 1u) / 2u;
const ALL = HEADS + 2u * KV_HEADS;

fn turned(v: vec2<f32>, r: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(v.x * r.x - v.y * r.y, v.x * r.y + v.y * r.x);
}

fn put(row: vec4<u32>, at: u32, head: u32, word: u32, v: vec2<f32>) {
    if (head < HEADS) {
        qkv[at + word] = v;
        return;
    }
    let page = pages[row.z * PAGES_PER_SLOT + row.y / PAGE];
    let place = (page * PAGE + row.y % PAGE) * KV_HEADS;
    if (head < HEADS + KV_HEADS) {
        keys[(place + head - HEADS) * WORDS + word] = pack2x16float(v);
    } else {
        values[(place + head - HEADS - KV_HEADS) * WORDS + word] = pack2x16float(v);
    }
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let head = id.x / COUPLES;
    let couple = id.x % COUPLES;
    if (head >= ALL) {
        return;
    }
    let row = rows[id.y];
    let at = (id.y * ALL + head) * WORDS;
    let angles = row.y * p.a;
    var first = 2u * couple;
    var second = first + 1u;
    let rotated = head < HEADS + KV_HEADS;
    if (p.b != 0u && couple < p.a / 2u) {
        first = couple;
        second = couple + p.a / 2u;
        var v = qkv[at + first];
        var w = qkv[at + second];
        if (rotated) {
            let x = turned(vec2<f32>(v.x, w.x), rope[angles + 2u * couple]);
            let y = turned(vec2<f32>(v.y, w.y), rope[angles + 2u * couple + 1u]);
            v = vec2<f32>(x.x, y.x);
            w = vec2<f32>(x.y, y.y);
        }
        put(row, at, head, first, v);
        put(row, at, head, second, w);
        return;
    }
    var v = qkv[at + first];
    if (rotated && first < p.a) {
        v = turned(v, rope[angles + first]);
    }
    put(row, at, head, first, v);
    if (second < WORDS) {
        var w = qkv[at + second];
        if (rotated && second < p.a) {
            w = turned(w, rope[angles + second]);
        }
        put(row, at, head, second, w);
    }
}
