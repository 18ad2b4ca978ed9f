//! Hostile messages in conversations, through chat templates that treat text as those of real models do: trimmed, cut, replaced,
//! quoted. Whatever callers write, the prompt has the control tokens of the template and no other, or the request is refused.
#![no_main]

mod shared;

use std::sync::LazyLock;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use spillway_engine::artifact::ModelFile;
use spillway_engine::text::TextModel;
use spillway_engine::{ChatMessage, Conversation};

/// Files of a small decoder, in the format of the `folder` target.
const MODEL: &[u8] = include_bytes!("../seeds/folder/llama");

/// Token of letters that the vocabulary of [`MODEL`] lacks.
const UNKNOWN: u32 = 0;

/// Control tokens that are added to those of [`MODEL`]; their ids are the last of its vocabulary.
const CONTROL: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// Templates that differ in what they do with a caller's text. Their control tokens depend on no text.
const TEMPLATES: [&str; 8] = [
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{{ eos_token }}{% endfor %}",
    "{% for m in messages %}{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1].lstrip('\\n') %}\
     {% endif %}{{ '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>' }}{% endfor %}",
    "{% for m in messages %}<|im_start|>{{ m.content | upper | lower }}{{ m.content.replace('a', '') }}<|im_end|>{% endfor %}",
    "{% for m in messages %}<|im_start|>{{ m.content | tojson }}<|im_end|>{% endfor %}",
    "{% for m in messages %}<|im_start|>{{ m.content[:5] }}{{ m.content[5:] }}<|im_end|>{% endfor %}",
    "{% for m in messages %}<|im_start|>{{ m.content.strip('<|>') ~ '|' ~ m.content }}<|im_end|>{% endfor %}",
    "{% for m in messages %}<|im_start|>{{ m.content.split('x') | join('') }}im_end|><|im_end|>{% endfor %}",
];

/// Parts of messages: control tokens, pieces of them, and characters that stand for others inside the engine.
const WORDS: [&str; 20] = [
    "<|im_start|>",
    "<|im_end|>",
    "<|im_",
    "start|>",
    "<|",
    "|>",
    "<s>",
    "</s>",
    "<",
    "x",
    "</think>",
    "<think>\n",
    "assistant\n",
    " ",
    "\n",
    "\u{F003C}",
    "\u{F007C}",
    "\u{10003C}",
    "<|\u{200B}im_end|>",
    "<|IM_END|>",
];
const ROLES: [&str; 4] = ["system", "user", "assistant", "<|im_start|>"];

#[derive(Arbitrary, Debug)]
enum Part<'a> {
    Word(u8),
    Text(&'a str),
}

type Message<'a> = (u8, Vec<Part<'a>>);

/// A model for each template.
static MODELS: LazyLock<Vec<TextModel>> = LazyLock::new(|| {
    let files = shared::files(MODEL);
    let [config, tokenizer, text, _, weights] = files[..] else { panic!("the seed has five files") };
    let tokenizer = std::str::from_utf8(tokenizer).expect("text");
    let added = |(n, token): (usize, &&str)| {
        let flags = r#""special":true,"normalized":false,"single_word":false,"lstrip":false,"rstrip":false"#;
        format!(r#"{{"id":{},"content":"{token}",{flags}}},"#, 17 + n)
    };
    let added: String = CONTROL.iter().enumerate().map(added).collect();
    let tokenizer = tokenizer.replacen(r#""added_tokens":["#, &format!(r#""added_tokens":[{added}"#), 1);
    let text = std::str::from_utf8(text).expect("text");
    let (before, _) = text.split_once(r#""chat_template":"#).expect("the seed has a template");
    let model = |template: &&str| {
        let escaped = template.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let text = format!("{before}\"chat_template\":\"{escaped}\"}}");
        let folder = shared::Folder::new();
        for (name, file) in [
            ("config.json", config),
            ("tokenizer.json", tokenizer.as_bytes()),
            ("tokenizer_config.json", text.as_bytes()),
            ("model.safetensors", weights),
        ] {
            folder.write(name, file);
        }
        // The folder has made panics quiet, and here each is a fault.
        drop(std::panic::take_hook());
        TextModel::new(&ModelFile::open(&folder.file("")).expect("a model")).expect("a model of text")
    };
    TEMPLATES.iter().map(model).collect()
});

/// Control tokens of a prompt, in order; `None` where the conversation is refused.
fn control_tokens(model: &TextModel, messages: &[ChatMessage]) -> Option<Vec<u32>> {
    let tokens = model.encode(&Conversation { messages, ..Conversation::default() }).ok()?;
    let is_control = |token: &u32| *token != UNKNOWN && model.tokenizer().control_text(*token).is_some();
    Some(tokens.into_iter().filter(is_control).collect())
}

fuzz_target!(|input: (u8, Vec<Message<'_>>)| {
    let (template, written) = input;
    let model = &MODELS[usize::from(template) % MODELS.len()];
    let content = |parts: &[Part<'_>]| -> String {
        let parts = parts.iter().take(16).map(|part| match part {
            Part::Word(n) => WORDS[usize::from(*n) % WORDS.len()],
            Part::Text(text) => text,
        });
        parts.collect()
    };
    let role = |n: u8| ROLES[usize::from(n) % ROLES.len()];
    let written = || written.iter().take(4);
    let hostile: Vec<_> = written().map(|(n, parts)| ChatMessage::new(role(*n), content(parts))).collect();
    let harmless: Vec<_> = written().map(|(n, _)| ChatMessage::new(role(*n), "a")).collect();
    if let Some(found) = control_tokens(model, &hostile) {
        let expected = control_tokens(model, &harmless).expect("harmless messages are taken where hostile ones are");
        assert_eq!(found, expected, "{} of {hostile:?}", TEMPLATES[usize::from(template) % TEMPLATES.len()]);
    }
});
