//! Common code of the targets: a folder in memory, and the load of a file up to where a device would be needed.
#![allow(dead_code, reason = "not every target uses all of it")]

use std::path::{Path, PathBuf};
use std::sync::Once;

use spillway_engine::artifact::ModelFile;
use spillway_engine::text::{TextModel, TextStream, Tokenizer};
use spillway_engine::{ChatMessage, Conversation, Task};

/// Separator of the files of a folder in one input; never part of JSON.
pub const MARK: &[u8] = b"\n\xff\n";

/// The five files of an input: the last is the weights, which may hold anything.
pub fn files(input: &[u8]) -> Vec<&[u8]> {
    let (mut files, mut rest) = (Vec::new(), input);
    while files.len() < 4
        && let Some(end) = rest.windows(MARK.len()).position(|window| window == MARK)
    {
        files.push(&rest[..end]);
        rest = &rest[end + MARK.len()..];
    }
    files.push(rest);
    files
}

/// A folder that is deleted when dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        // A panic that the engine catches is no fault; an uncaught one ends the target all the same.
        static QUIET: Once = Once::new();
        QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
        let root = Path::new("/dev/shm");
        let root = if root.is_dir() { root.to_owned() } else { std::env::temp_dir() };
        let folder = root.join(format!("spillway-fuzz-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder for the files");
        Self(folder)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.file(name), bytes).expect("room for a file");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const TEXT: &str = "hello <s>hello</s>  \u{1F600}<|im_end|> it's\r\n 123\u{0301}";

/// Opens a model as the engine does, tokenises texts, decodes the tokens.
pub fn open(source: &Path) {
    let Ok(info) = spillway_engine::inspect(source) else { return };
    let Ok(file) = ModelFile::open(source) else { return };
    match info.task {
        Task::Generate => {
            let Ok(model) = TextModel::new(&file) else { return };
            cut(model.tokenizer());
            let messages = [ChatMessage::new("system", " a "), ChatMessage::new("user", TEXT)];
            let _ = model.encode(&Conversation { messages: &messages, ..Conversation::default() });
        }
        Task::Embed | Task::Classify => {
            if let Ok(tokenizer) = Tokenizer::new(&file) {
                cut(&tokenizer);
            }
        }
    }
}

fn cut(tokenizer: &Tokenizer) {
    let Ok(tokens) = tokenizer.encode_text(TEXT) else { return };
    let mut stream = TextStream::new(vec!["lo".into()]);
    for token in tokens {
        assert!((token as usize) < tokenizer.vocabulary(), "a token that there is");
        stream.push(tokenizer.bytes_of(token));
    }
    stream.finish();
}
