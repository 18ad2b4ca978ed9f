// Causal attention over the pages of a sequence, by tiles of 64 positions with a running maximum and sum (online
// softmax, arXiv:1805.02867). One workgroup a head of a row: first each invocation scores one position of the tile, then
// each gathers two values of the answer over all of them.
@group(0) @binding(0) var<storage, read> qkv: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read> rows: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> pages: array<u32>;
@group(0) @binding(3) var<storage, read> keys: array<u32>;
@group(0) @binding(4) var<storage, read> values: array<u32>;
@group(0) @binding(5) var<storage, read_write> out: array<vec2<f32>>;

const WORDS = HEAD_DIM / 2u;
const KEY = KV_HEADS * WORDS;

var<workgroup> query: array<vec2<f32>, WORDS>;
var<workgroup> weights: array<f32, 64>;
var<workgroup> places: array<u32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group.x;
    let row = rows[group.y];
    let kv = head / (HEADS / KV_HEADS) * WORDS;
    for (var w = lane; w < WORDS; w += 64u) {
        query[w] = qkv[group.y * (HEADS + 2u * KV_HEADS) * WORDS + head * WORDS + w] * inverseSqrt(f32(HEAD_DIM));
    }
    workgroupBarrier();

    var most = -3.0e38;
    var total = 0.0;
    var first = vec2<f32>(0.0);  // word `lane` of the answer
    var second = vec2<f32>(0.0); // word `lane + 64`
    let tiles = row.y / 64u + 1u;
    for (var tile = 0u; tile < tiles; tile++) {
        let position = tile * 64u + lane;
        var score = -3.0e38;
        if (position <= row.y) {
            let page = pages[row.z * PAGES_PER_SLOT + position / PAGE];
            let place = (page * PAGE + position % PAGE) * KEY + kv;
            places[lane] = place;
            score = 0.0;
            for (var w = 0u; w < WORDS; w++) {
                score += dot(query[w], unpack2x16float(keys[place + w]));
            }
        }
        weights[lane] = score;
        workgroupBarrier();
        let count = min(64u, row.y - tile * 64u + 1u);
        var tile_most = most;
        for (var i = 0u; i < count; i++) {
            tile_most = max(tile_most, weights[i]);
        }
        let keep = exp(most - tile_most);
        most = tile_most;
        workgroupBarrier();
        weights[lane] = exp(score - most);
        workgroupBarrier();
        total *= keep;
        first *= keep;
        second *= keep;
        for (var i = 0u; i < count; i++) {
            let weight = weights[i];
            total += weight;
            if (lane < WORDS) {
                first += weight * unpack2x16float(values[places[i] + lane]);
            }
            if (lane + 64u < WORDS) {
                second += weight * unpack2x16float(values[places[i] + lane + 64u]);
            }
        }
        workgroupBarrier();
    }
    let to = (group.y * HEADS + head) * WORDS;
    if (lane < WORDS) {
        out[to + lane] = first / total;
    }
    if (lane + 64u < WORDS) {
        out[to + lane + 64u] = second / total;
    }
}
