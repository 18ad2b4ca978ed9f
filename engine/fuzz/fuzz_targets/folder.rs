//! Arbitrary bytes as a model folder: `config.json`, `tokenizer.json`, `tokenizer_config.json`, an optional index of
//! parts, and the weights, one after the other with marks between them. The folder is refused, or its tokenizer and
//! template can be built and used.
#![no_main]

mod shared;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let files = shared::files(bytes);
    let [config, tokenizer, text, index, weights] = files[..] else { return };
    let folder = shared::Folder::new();
    let part = if index.is_empty() { "model.safetensors" } else { "model-00001-of-00001.safetensors" };
    for (name, file) in [
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", text),
        ("model.safetensors.index.json", index),
        (part, weights),
    ] {
        if !file.is_empty() {
            folder.write(name, file);
        }
    }
    shared::open(&folder.file(""));
});
