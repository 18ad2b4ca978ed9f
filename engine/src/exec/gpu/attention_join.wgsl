// Join of the partial result of one stretch of positions with those before it: the largest score of all, the sum of
// weights, and the factors for the answers so far and for the stretch's own.
const LEAST = -3.0e38;

struct Joined {
    most: f32,
    total: f32,
    keep: f32,
    take: f32,
}

fn join(most: f32, total: f32, most_here: f32, total_here: f32) -> Joined {
    let both = max(most, most_here);
    let keep = exp(most - both);
    let take = exp(most_here - both);
    return Joined(both, fma(total, keep, total_here * take), keep, take);
}
