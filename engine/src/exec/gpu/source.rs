//! The WGSL of each kernel: the files beside this one with the model's sizes in front, and the quantised matrix
//! products, which are written out for how many rows share an unpacked weight.
//!
//! Quantised weights are repacked so that neighbouring invocations, each with a weight row of its own, read
//! neighbouring words: groups of 64 rows, in each block of 32 values first a word of scales for every row, then each
//! word of quants for every row.

use std::fmt::Write;

use crate::artifact::TensorType;
use crate::exec::{PAGE, Sizes};

/// Weight rows that lie side by side.
pub(super) const GROUP: usize = 64;

/// Words of a block: scales, then quants.
pub(super) const fn block_words(kind: TensorType) -> usize {
    match kind {
        TensorType::F32 => 0,
        TensorType::Q4_1 => 5,
        TensorType::Q8_0 => 9,
    }
}

/// A kernel from a file, with the model's sizes.
pub(super) fn with_sizes(sizes: &Sizes, body: &str) -> String {
    format!(
        "const PAGE = {PAGE}u;\nconst PAGES_PER_SLOT = {}u;\nconst HEADS = {}u;\nconst KV_HEADS = {}u;\n\
         const HEAD_DIM = {}u;\nconst ROPE_PAIRS = {}u;\n{}\n{body}",
        sizes.pages_per_slot(),
        sizes.heads,
        sizes.kv_heads,
        sizes.head_dim,
        sizes.rope_dim / 2,
        include_str!("common.wgsl"),
    )
}

/// The embedding for tables of a type.
pub(super) fn embed(sizes: &Sizes, kind: TensorType) -> String {
    let words = block_words(kind);
    let weight = match kind {
        TensorType::F32 => "return bitcast<f32>(table[row * p.a + column]);".to_owned(),
        TensorType::Q4_1 => format!(
            "let at = ((row / {GROUP}u * (p.a / 32u) + column / 32u) * {words}u) * {GROUP}u + row % {GROUP}u;
             let scale = unpack2x16float(table[at]);
             let place = column % 16u;
             let word = table[at + (1u + place / 4u) * {GROUP}u];
             let q = (word >> (place % 4u * 8u + select(0u, 4u, column % 32u >= 16u))) & 15u;
             return f32(q) * scale.x + scale.y;"
        ),
        TensorType::Q8_0 => format!(
            "let at = ((row / {GROUP}u * (p.a / 32u) + column / 32u) * {words}u) * {GROUP}u + row % {GROUP}u;
             let place = column % 32u;
             let word = table[at + (1u + place / 4u) * {GROUP}u];
             return f32(unpack4xI8(word)[place % 4u]) * unpack2x16float(table[at]).x;"
        ),
    };
    let body = format!("fn weight(row: u32, column: u32) -> f32 {{\n{weight}\n}}\n{}", include_str!("embed.wgsl"));
    with_sizes(sizes, &body)
}

/// `out[r][offset + n] = w[n] . x[r]` for quantised weights: one invocation a weight row, `tile` rows of activations
/// for each unpacked block. Parameters: a blocks of a row, b weight rows, c width of out, d offset, e whether to add.
///
/// With `subgroups` the eight words of a block of activations are loaded by eight lanes at once and handed round: where
/// a driver makes a loop of a load whose address is the same for all lanes, that is what counts.
pub(super) fn matmul(sizes: &Sizes, kind: TensorType, tile: usize, subgroups: bool) -> String {
    let words = block_words(kind);
    let mut s = String::new();
    let out = &mut s;
    let line = |out: &mut String, text: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = out.write_fmt(text);
        out.push('\n');
    };
    line(
        out,
        format_args!(
            "@group(0) @binding(0) var<storage, read> w: array<u32>;
         @group(0) @binding(1) var<storage, read> quants: array<u32>;
         @group(0) @binding(2) var<storage, read> scales: array<vec2<f32>>;
         @group(0) @binding(3) var<storage, read_write> out: array<f32>;
         @compute @workgroup_size({GROUP})
         fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32{}) {{
         let n = group.x * {GROUP}u + lane;
         let first = group.y * {tile}u;",
            if subgroups { ", @builtin(subgroup_invocation_id) member: u32" } else { "" },
        ),
    );
    for t in 0..tile {
        // Rows past the end repeat the last one; what they give is not written.
        line(out, format_args!("let row{t} = min(first + {t}u, p.rows - 1u) * p.a; var sum{t} = 0.0;"));
    }
    line(
        out,
        format_args!(
            "var at = group.x * p.a * {}u + lane;\nfor (var block = 0u; block < p.a; block++) {{",
            words * GROUP
        ),
    );
    line(out, format_args!("let scale = unpack2x16float(w[at]);"));
    match kind {
        TensorType::Q4_1 => {
            for j in 0..4 {
                line(
                    out,
                    format_args!(
                        "let q{j} = w[at + {}u]; let a{j} = q{j} & 0x0f0f0f0fu; let a{} = (q{j} >> 4u) & 0x0f0f0f0fu;",
                        (j + 1) * GROUP,
                        j + 4
                    ),
                );
            }
        }
        TensorType::Q8_0 | TensorType::F32 => {
            for j in 0..8 {
                line(out, format_args!("let a{j} = w[at + {}u];", (j + 1) * GROUP));
            }
        }
    }
    for t in 0..tile {
        line(out, format_args!("{{ let start = row{t} + block; let xs = scales[start]; var dot = 0;"));
        if subgroups {
            line(out, format_args!("let mine = quants[start * 8u + (member & 7u)];"));
        }
        for j in 0..8 {
            let x =
                if subgroups { format!("subgroupBroadcast(mine, {j}u)") } else { format!("quants[start * 8u + {j}u]") };
            line(out, format_args!("dot += dot4I8Packed(a{j}, {x});"));
        }
        match kind {
            TensorType::Q4_1 => line(out, format_args!("sum{t} += scale.x * xs.x * f32(dot) + scale.y * xs.y; }}")),
            _ => line(out, format_args!("sum{t} += scale.x * xs.x * f32(dot); }}")),
        }
    }
    line(out, format_args!("at += {}u;\n}}\nif (n >= p.b) {{ return; }}", words * GROUP));
    for t in 0..tile {
        line(
            out,
            format_args!(
                "if (first + {t}u < p.rows) {{
             let to = (first + {t}u) * p.c + p.d + n;
             if (p.e != 0u) {{ out[to] += sum{t}; }} else {{ out[to] = sum{t}; }} }}"
            ),
        );
    }
    line(out, format_args!("}}"));
    with_sizes(sizes, &s)
}
