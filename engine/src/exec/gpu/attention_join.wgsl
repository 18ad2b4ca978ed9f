// What was gathered over one stretch of places, joined to what was gathered over those before it: the largest score of all,
// the sum of weights, and what the answers so far and the stretch's own are multiplied by.
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
