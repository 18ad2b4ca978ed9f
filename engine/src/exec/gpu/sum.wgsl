// Sum over the 64 invocations of a workgroup, in an order that does not depend on the batch.
var<workgroup> sums: array<f32, 64>;

fn total(mine: f32, lane: u32) -> f32 {
    workgroupBarrier();
    sums[lane] = mine;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if (lane < half) {
            sums[lane] += sums[lane + half];
        }
        workgroupBarrier();
    }
    return sums[0];
}
