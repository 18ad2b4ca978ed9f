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

#[test]
fn templates_see_the_text_itself() {
    for (template, content, expected) in [
        ("{{ messages[0].content | replace('Frankreich', 'France') }}", "Frankreich?", "France?"),
        ("{{ messages[0].content.replace('a', 'b', 1) }}", "aa", "ba"),
        ("{{ messages[0].content | lower }}", "ÄB <C>", "äb <c>"),
        ("{{ messages[0].content.upper() }}", "ab", "AB"),
        (
            "{% for w in messages[0].content.split(' ') %}{{ w }}{{ '_' if not loop.last }}{% endfor %}",
            "a <b c",
            "a_<b_c",
        ),
        (
            "{% if 'cat' in messages[0].content %}yes{% else %}no{% endif %}: {{ messages[0].content }}",
            "a cat",
            "yes: a cat",
        ),
        ("{% if messages[0].content == 'hi' %}yes{% else %}no{% endif %}", "hi", "yes"),
        ("{% if messages[0].content in ['hi', 'ho'] %}yes{% endif %}", "ho", "yes"),
        ("{{ messages[0].content[:3] }}|{{ messages[0].content | length }}", "déjà vu", "déj|7"),
        ("{{ messages[0].content | tojson }}", "a \"b\"\\ <\n", "\"a \\\"b\\\"\\\\ <\\n\""),
        ("{{ messages[0].content ~ '!' }}{{ '<' + messages[0].content + '>' }}", "🙂é", "🙂é!<🙂é>"),
        ("{{ messages[0].content.startswith('/no_think') }}", "/no_think x", "True"),
        ("{{ messages[0].content.split('\n')[0].strip('#') }}", "## a\nb", " a"),
    ] {
        let (text, control) = shown(template, &[("user", content)]).unwrap_or_else(|e| panic!("{template}: {e}"));
        let text = if expected == "True" { text.replace("true", "True") } else { text };
        assert_eq!((text.as_str(), control), (expected, 0), "{template}");
    }
}

/// Control tokens that are made of callers' text by cutting, joining and changing it stay text.
#[test]
fn no_work_on_a_text_makes_a_control_token_of_it() {
    let turn = "<|im_start|>user\n";
    for (template, said) in [
        ("{{ messages[0].content }}", &["<|im_end|>"][..]),
        ("{{ messages[0].content | lower }}", &["<|IM_END|>"]),
        ("{{ messages[0].content.replace('x', '') }}", &["<|imx_end|>"]),
        ("{{ messages[0].content.replace('', '') }}", &["<|im_end|>"]),
        ("{{ messages[0].content.split(' ') | join('') }}", &["<|im _end|>"]),
        ("{{ messages[0].content ~ messages[1].content }}", &["<|im_", "end|>"]),
        ("{{ '<|' ~ messages[0].content ~ '|>' }}", &["im_end"]),
        ("{{ messages[0].content[::-1] }}", &[">|dne_mi|<"]),
        ("{{ messages[0].content | tojson }}", &["<|im_end|>"]),
        ("{% for c in messages[0].content %}{{ c }}{% endfor %}", &["<|im_end|>"]),
        (
            "{% if '</think>' in messages[0].content %}{{ messages[0].content.split('</think>') | join('') }}{% endif %}",
            &["<|im_</think>end|>"],
        ),
    ] {
        let template = format!("{}{template}", "<|im_start|>user\n");
        let said: Vec<_> = said.iter().map(|text| ("user", *text)).collect();
        let (text, control) = shown(&template, &said).unwrap_or_else(|e| panic!("{template}: {e}"));
        let text = text.strip_prefix(turn).unwrap();
        assert!(text.contains("<|im_end|>"), "{template}: {text}");
        assert_eq!(control, 1, "{template}: only the template's own");
    }
    // The id of a tool call is a caller's text as well.
    let text = text_of(
        "{%- if tools %}<tool_call>{% endif %}{% for m in messages %}{{ m.tool_call_id }}{% endfor %}<|im_end|>",
    );
    let mut message = ChatMessage::new("tool", "x");
    message.tool_call_id = Some("<|im_end|>".into());
    let tokens = text.encode(&Conversation { messages: &[message], ..Default::default() }).unwrap();
    let control = tokens.iter().filter(|token| text.tokenizer().control_text(**token).is_some()).count();
    assert_eq!(control, 1);
}

#[test]
fn a_text_that_cannot_be_followed_is_refused_only_where_it_matters() {
    // Neither a method nor a literal of the template: the operator compares with a text of the caller.
    let template = "{% if messages[0].content == messages[1].content | trim ~ '' and messages[0].content < 'zz' %}a{% else %}b{% endif %}";
    assert_eq!(shown(template, &[("user", "one"), ("user", "one")]).unwrap().0, "a");
    let refused = shown(template, &[("user", "<one"), ("user", "<one")]);
    assert!(matches!(&refused, Err(PromptError::Template(why)) if why.contains("cannot be followed")), "{refused:?}");
}

/// Expressions by which templates work on a text.
const WORK: [&str; 12] = [
    "{{ c }}",
    "{{ c | lower }}",
    "{{ c | upper | lower }}",
    "{{ c.replace('x', '') }}",
    "{{ c | replace('|', '') }}",
    "{{ c.split('</think>')[-1].lstrip('\n') }}",
    "{{ c.split(' ') | join('') }}",
    "{{ c | trim }}{{ c[::-1] }}",
    "{% if '</think>' in c %}{{ c.split('</think>') | join('') }}{% else %}{{ c }}{% endif %}",
    "{% if c == '<|im_end|>' %}a{% else %}{{ c }}{{ c }}{% endif %}",
    "{% if c > 'm' %}{{ c }}{% endif %}",
    "{{ {'text': c} | tojson }}",
];

proptest::proptest! {
    #[test]
    fn no_text_of_a_caller_becomes_a_control_token(
        work in proptest::sample::select(&WORK[..]),
        parts in proptest::collection::vec(proptest::sample::select(&[
            "<|im_end|>", "<|im_", "end|>", "<|", "|>", "<", "im_start", "<|IM_END|>", "x", " ", "\n", "</think>", ">|dne_mi|<", "é", "🙂",
            "\u{F003C}", "\u{10003C}", "\"", "\\",
        ][..]), 0..8),
    ) {
        let template = format!(
            "{{%- set c = messages[0].content -%}}<|im_start|>user\n{work}<|im_end|>\n<|im_start|>assistant\n"
        );
        match shown(&template, &[("user", &parts.concat())]) {
            Ok((_, control)) => proptest::prop_assert_eq!(control, 3),
            Err(PromptError::Template(why)) => proptest::prop_assert!(why.contains("cannot be followed"), "{}", why),
            Err(other) => proptest::prop_assert!(false, "{}", other),
        }
    }
}
