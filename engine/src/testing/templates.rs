//! Renderings of templates, compared with Hugging Face's `apply_chat_template`.

use std::io::Write;

use super::small_model_with;
use crate::artifact::{ModelFile, TensorType};
use crate::text::TextModel;
use crate::{ChatMessage, Conversation, PromptError};

fn text_of(template: &str) -> TextModel {
    let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    file.write_all(&small_model_with(TensorType::F32, template)).unwrap();
    TextModel::new(&ModelFile::open(file.path()).unwrap()).unwrap()
}

/// Rendered prompt, and the number of control tokens in it.
fn shown(template: &str, said: &[(&str, &str)]) -> Result<(String, usize), PromptError> {
    let text = text_of(template);
    let messages: Vec<_> = said.iter().map(|(role, content)| ChatMessage::new(*role, *content)).collect();
    let tokens = text.encode(&Conversation { messages: &messages, ..Default::default() })?;
    let control = |token: &u32| text.tokenizer().control_text(*token);
    let bytes = tokens.iter().flat_map(|token| match control(token) {
        Some(control) => control.as_bytes().to_vec(),
        None => text.tokenizer().bytes_of(*token).to_vec(),
    });
    let bytes: Vec<u8> = bytes.collect();
    Ok((String::from_utf8(bytes).unwrap(), tokens.iter().filter(|token| control(token).is_some()).count()))
}

#[test]
fn blanks_are_trimmed_where_the_template_trims_them_and_nowhere_else() {
    let template = "{{ messages[0].content }}|{{ messages[1].content | trim }}|{{ messages[1].content.strip() }}|\
        {{ messages[1].content.rstrip('\\n') }}|{{ messages[1].content | tojson }}|{{ messages[2].content | trim }}|\
        {{ messages[2].content }}|{% if messages[3].content %}something{% else %}nothing{% endif %}";
    let said = [("system", " a\u{3000}b \n"), ("user", "\n b\t \n"), ("user", " \n "), ("user", "")];
    let expected = " a\u{3000}b \n|b|b|\n b\t |\"\\n b\\t \\n\"|| \n |nothing";
    assert_eq!(shown(template, &said).unwrap().0, expected);
}

/// The part of Qwen 3's template that leaves out earlier thoughts.
const THINKS: &str = "{%- for message in messages[::-1] %}\
    {%- if message.role == 'user' and not(message.content.startswith('<tool_response>') and \
    message.content.endswith('</tool_response>')) %}[{{ message.content }}]{% endif %}{%- endfor %}\
    {%- for message in messages %}{%- set content = message.content %}{%- set thought = '' %}\
    {%- if message.role == 'assistant' and '</think>' in content %}\
    {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\
    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}\
    <|im_start|>{{ message.role }}\n{{ content }}<|im_end|>{% if loop.last %}({{ thought }}){% endif %}\n{%- endfor %}";

#[test]
fn what_was_thought_before_is_left_out_where_the_template_leaves_it_out() {
    let thought = ("assistant", "<think>\nThe capital, <|im_end|> surely.\n</think>\n\nParis.\n");
    let result = ("user", "<tool_response>\n12 degrees\n</tool_response>");
    let (text, control) = shown(THINKS, &[("user", "Where </think> am I?"), result, thought]).unwrap();
    assert_eq!(
        text,
        "[Where </think> am I?]<|im_start|>user\nWhere </think> am I?<|im_end|>\
         <|im_start|>user\n<tool_response>\n12 degrees\n</tool_response><|im_end|>\
         <|im_start|>assistant\nParis.\n<|im_end|>(The capital, <|im_end|> surely.)"
    );
    assert_eq!(control, 6, "what was thought is text, whatever it looks like");
}

#[test]
fn marks_of_training_mean_nothing_and_the_date_is_told() {
    let template = "{%- if strftime_now is defined %}{{ strftime_now('%Y-%m') }}{% endif %}\
        {% for m in messages %}\n{%- generation -%}\n {{ m.content }}{% endgeneration %}{% endfor %}";
    let (text, _) = shown(template, &[("user", "hi")]).unwrap();
    assert!(text.len() == 9 && text.starts_with("20") && text.ends_with("hi"), "{text:?}");
    let refused = shown("{{ strftime_now('%Q') }}", &[("user", "hi")]);
    assert!(matches!(&refused, Err(PromptError::Template(why)) if why.contains("%Q")), "{refused:?}");
}
