//! Seeds of the fuzz targets: models that are accepted, so that mutations of them reach far.

use std::path::{Path, PathBuf};

use crate::artifact::ModelFile;
use crate::text::{TextModel, Tokenizer};
use crate::{ChatMessage, Conversation, Task};

fn seeds(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut seeds: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    seeds.sort();
    assert!(seeds.len() > 2);
    seeds
}

/// True if a model is accepted and tokenises texts.
fn is_taken(source: &Path) -> bool {
    let (Ok(info), Ok(file)) = (crate::inspect(source), ModelFile::open(source)) else { return false };
    if info.task != Task::Generate {
        return Tokenizer::new(&file).is_ok_and(|tokenizer| tokenizer.encode_text("hello a").is_ok());
    }
    TextModel::new(&file).is_ok_and(|text| {
        let messages = [ChatMessage::new("user", "hello")];
        let conversation = Conversation { messages: &messages, ..Default::default() };
        text.tokenizer().encode_text("hello").is_ok() && (!text.has_template() || text.encode(&conversation).is_ok())
    })
}

/// Writes the files of a seed to a folder, with another tokenizer if given.
fn write(seed: &Path, tokenizer: Option<&[u8]>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut rest = &std::fs::read(seed).unwrap()[..];
    let parts = "model.safetensors.index.json";
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", parts] {
        let end = rest.windows(3).position(|window| window == b"\n\xff\n").unwrap();
        let bytes = if name == "tokenizer.json" { tokenizer.unwrap_or(&rest[..end]) } else { &rest[..end] };
        if !bytes.is_empty() {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        rest = &rest[end + 3..];
    }
    let in_parts = folder.path().join(parts).exists();
    let name = if in_parts { "model-00001-of-00001.safetensors" } else { "model.safetensors" };
    std::fs::write(folder.path().join(name), rest).unwrap();
    folder
}

#[test]
fn what_the_fuzz_targets_begin_with_is_taken() {
    for file in seeds("gguf") {
        assert!(is_taken(&file), "{}: {:?}", file.display(), crate::inspect(&file));
    }
    let folders = seeds("folder");
    for seed in &folders {
        let folder = write(seed, None);
        assert!(is_taken(folder.path()), "{}: {:?}", seed.display(), crate::inspect(folder.path()));
    }
    let models = ["llama", "bert"].map(|name| folders.iter().find(|seed| seed.ends_with(name)).unwrap());
    for json in seeds("tokenizer") {
        let bytes = std::fs::read(&json).unwrap();
        assert!(models.iter().any(|model| is_taken(write(model, Some(&bytes)).path())), "{}", json.display());
    }
}

#[test]
fn an_encoder_whose_tokenizer_knows_more_than_its_table_is_refused() {
    let folders = seeds("folder");
    let bert = folders.iter().find(|seed| seed.ends_with("bert")).unwrap();
    let json = seeds("tokenizer").into_iter().find(|seed| seed.ends_with("wordpiece.json")).unwrap();
    let json = std::fs::read_to_string(json).unwrap();
    let refused = |number: &str| {
        let json = json.replace("\"##s\":6", &format!("\"##s\":{number}"));
        let folder = write(bert, Some(json.as_bytes()));
        Tokenizer::new(&ModelFile::open(folder.path()).unwrap()).err().map(|e| e.to_string())
    };
    assert_eq!(refused("6"), None);
    let told = refused("7").unwrap();
    assert!(told.contains("numbers 8 tokens; expected at most 7, the rows of the token table"), "{told}");
    assert!(refused("4294967295").is_some());
}
