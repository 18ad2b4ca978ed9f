//! Arbitrary bytes as the `tokenizer.json` of a small decoder, and of a small encoder: refused, or texts can be
//! tokenised.
#![no_main]

mod shared;

use libfuzzer_sys::fuzz_target;

/// Folders in the format of the `folder` target.
const MODELS: [&[u8]; 2] = [include_bytes!("../seeds/folder/llama"), include_bytes!("../seeds/folder/bert")];

fuzz_target!(|json: &[u8]| {
    for model in MODELS {
        let [config, _, text, _, weights] = shared::files(model)[..] else { continue };
        let folder = shared::Folder::new();
        for (name, file) in [
            ("config.json", config),
            ("tokenizer.json", json),
            ("tokenizer_config.json", text),
            ("model.safetensors", weights),
        ] {
            folder.write(name, file);
        }
        shared::open(&folder.file(""));
    }
});
