//! Any bytes as a GGUF file: its header is refused, or every tensor lies inside and dequantises to as many values as the
//! table says. The file is refused, or what stands between text and tokens can be made of it and used.
#![no_main]

mod shared;

use libfuzzer_sys::fuzz_target;
use spillway_engine::artifact::Header;

/// Tensors beyond this are not dequantised: they would only be slow.
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
