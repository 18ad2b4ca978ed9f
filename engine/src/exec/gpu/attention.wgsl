// Attention by tiles of 64 places with a running maximum and sum (online softmax, arXiv:1805.02867). One workgroup a head
// of a row: first each invocation scores one place of the tile, then each gathers two words of the answer over all of
// them. What is looked at, and where it lies, say the functions in front of this text.
const WORDS = HEAD_DIM / 2u;

var<workgroup> query: array<vec2<f32>, WORDS>;
var<workgroup> weights: array<f32, 64>;
var<workgroup> places: array<u32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group.x;
    let range = looked_at(group.y);
    let kv = head / (HEADS / KV_HEADS);
    for (var w = lane; w < WORDS; w += 64u) {
        query[w] = qkv[(group.y * (HEADS + 2u * KV_HEADS) + head) * WORDS + w] * bitcast<f32>(p.a);
    }
    workgroupBarrier();

    var most = -3.0e38;
    var total = 0.0;
    var first = vec2<f32>(0.0);  // word `lane` of the answer
    var second = vec2<f32>(0.0); // word `lane + 64`
    for (var done = 0u; done < range.y; done += 64u) {
        let count = min(64u, range.y - done);
        var score = -3.0e38;
        if (lane < count) {
            let place = place_of(group.y, range.x + done + lane, kv);
            places[lane] = place;
            score = 0.0;
            for (var w = 0u; w < WORDS; w++) {
                score += dot(query[w], key(place + w));
            }
        }
        weights[lane] = score;
        workgroupBarrier();
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
                first += weight * value(places[i] + lane);
            }
            if (lane + 64u < WORDS) {
                second += weight * value(places[i] + lane + 64u);
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
