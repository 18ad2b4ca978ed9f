//! Arbitrary bytes as a GGUF file: the header is refused, or every tensor lies inside and dequantises to as many
//! values as the table says. The file is refused, or its tokenizer and template can be built and used.
#![no_main]

mod shared;

use libfuzzer_sys::fuzz_target;
use spillway_engine::artifact::Header;

/// Longest tensor that is dequantised, in bytes: longer ones would only be slow.
const MOST: usize = 1 << 20;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = Header::parse(file) else { return };
    for tensor in header.tensors.values() {
        let data = file.get(tensor.range.clone()).expect("a tensor lies inside of the file");
        let Some(kind) = tensor.kind.filter(|_| data.len() <= MOST) else { continue };
        let mut values = Vec::new();
        kind.dequantize(data, &mut values);
        assert_eq!(values.len() as u64, tensor.elements);
    }
    let folder = shared::Folder::new();
    folder.write("model.gguf", file);
    shared::open(&folder.file("model.gguf"));
});
