// Rotates queries and keys by their positions and stores keys and values in f16, two to a word.
// One invocation a pair of values of a row of queries, keys and values side by side.
@group(0) @binding(0) var<storage, read_write> qkv: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read> rows: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> pages: array<u32>;
@group(0) @binding(3) var<storage, read> rope: array<vec2<f32>>; // cosine, sine
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;

const WORDS = HEAD_DIM / 2u; // of a head
const QUERY = HEADS * WORDS;
const KEY = KV_HEADS * WORDS;

fn cached(row: vec4<u32>, word: u32) -> u32 {
    let page = pages[row.z * PAGES_PER_SLOT + row.y / PAGE];
    return (page * PAGE + row.y % PAGE) * KEY + word;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let pair = id.x;
    if (pair >= QUERY + 2u * KEY) {
        return;
    }
    let row = rows[id.y];
    let at = id.y * (QUERY + 2u * KEY) + pair;
    var v = qkv[at];
    if (pair < QUERY + KEY) {
        let place = pair % WORDS;
        if (place < ROPE_PAIRS) {
            let r = rope[row.y * ROPE_PAIRS + place];
            v = vec2<f32>(v.x * r.x - v.y * r.y, v.x * r.y + v.y * r.x);
        }
        if (pair < QUERY) {
            qkv[at] = v;
        } else {
            keys[cached(row, pair - QUERY)] = pack2x16float(v);
        }
    } else {
        values[cached(row, pair - QUERY - KEY)] = pack2x16float(v);
    }
}
