// Attention by tiles of 64 positions with a running maximum and sum (online softmax, arXiv:1805.02867). One workgroup
// for each head of a row: first each invocation scores one position of the tile, then each sums two words of the
// answer over all positions. The functions in front of this text define the visible positions and their layout.
//
// The softmax is computed separately for each stretch of positions, then over the stretches in order. So a workgroup
// of its own may compute each stretch without a change of the result (APART; `attention_merge.wgsl` merges them). c:
// stretches that have workgroups.
const WORDS = HEAD_DIM / 2u;

var<workgroup> query: array<vec2<f32>, WORDS>;
var<workgroup> weights: array<f32, 64>;
var<workgroup> places: array<u32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group.x / p.c;
    let range = looked_at(group.y);
    let kv = head / (HEADS / KV_HEADS);
    for (var w = lane; w < WORDS; w += 64u) {
        query[w] = qkv[(group.y * (HEADS + 2u * KV_HEADS) + head) * WORDS + w] * bitcast<f32>(p.a);
    }
    workgroupBarrier();

    var stretch = 0u;
    var stretches = (range.y + STRETCH - 1u) / STRETCH;
    if (APART) {
        stretch = group.x % p.c;
        stretches = min(stretches, stretch + 1u);
    }
    var most = LEAST;
    var total = 0.0;
    var first = vec2<f32>(0.0);  // word `lane` of the answer
    var second = vec2<f32>(0.0); // word `lane + 64`
    for (; stretch < stretches; stretch++) {
        var most_here = LEAST;
        var total_here = 0.0;
        var first_here = vec2<f32>(0.0);
        var second_here = vec2<f32>(0.0);
        let end = min(range.y, (stretch + 1u) * STRETCH);
        for (var done = stretch * STRETCH; done < end; done += 64u) {
            let count = min(64u, end - done);
            var score = LEAST;
            if (lane < count) {
                let place = place_of(group.y, range.x + done + lane, kv);
                places[lane] = place;
                score = 0.0;
                for (var w = 0u; w < WORDS; w++) {
                    let k = key(place + w);
                    score = fma(query[w].x, k.x, score);
                    score = fma(query[w].y, k.y, score);
                }
            }
            weights[lane] = score;
            workgroupBarrier();
            var tile_most = most_here;
            for (var i = 0u; i < count; i++) {
                tile_most = max(tile_most, weights[i]);
            }
            let keep = exp(most_here - tile_most);
            most_here = tile_most;
            workgroupBarrier();
            weights[lane] = exp(score - most_here);
            workgroupBarrier();
            first_here *= keep;
            second_here *= keep;
            var tile_total = 0.0;
            for (var i = 0u; i < count; i++) {
                let weight = weights[i];
                tile_total += weight;
                if (lane < WORDS) {
                    first_here = fma(vec2<f32>(weight), value(places[i] + lane), first_here);
                }
                if (lane + 64u < WORDS) {
                    second_here = fma(vec2<f32>(weight), value(places[i] + lane + 64u), second_here);
                }
            }
            total_here = fma(total_here, keep, tile_total);
            workgroupBarrier();
        }
        let joined = join(most, total, most_here, total_here);
        most = joined.most;
        total = joined.total;
        first = fma(first, vec2<f32>(joined.keep), first_here * joined.take);
        second = fma(second, vec2<f32>(joined.keep), second_here * joined.take);
    }
    if (APART) {
        let to = (group.y * HEADS * p.c + group.x) * (WORDS + 1u);
        if (lane < WORDS) {
            out[to + lane] = first;
        }
        if (lane + 64u < WORDS) {
            out[to + lane + 64u] = second;
        }
        if (lane == 0u) {
            out[to + WORDS] = vec2<f32>(most, total);
        }
        return;
    }
    let to = (group.y * HEADS + head) * WORDS;
    if (lane < WORDS) {
        out[to + lane] = first / total;
    }
    if (lane + 64u < WORDS) {
        out[to + lane + 64u] = second / total;
    }
}
