//! Chat templates: what they render, what they refuse, and how long they may take.

use std::time::Duration;

use serde_json::json;

use super::*;

/// 14 November 2023.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn messages() -> Vec<ChatMessage> {
    [("system", "Be brief."), ("user", "Where is\nmy <order> & \"it\"? 你好")]
        .map(|(role, content)| ChatMessage { role: role.to_owned(), content: content.to_owned() })
        .to_vec()
}

fn render(source: &str) -> Result<String, String> {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens = tokens.map(|(name, token)| (name.to_owned(), token.to_owned())).into();
    let template = ChatTemplate::new(Path::new("t"), source, tokens);
    template.and_then(|template| template.render(&messages(), true, now())).map_err(|error| crate::error::chain(&error))
}

#[test]
fn templates_render_as_in_transformers() {
    let check = |source: &str, expected: &str| assert_eq!(render(source).expect("rendered"), expected, "{source}");
    // ChatML, as SmolLM2 and Qwen write it; blocks eat the line's end and what stands before them.
    check(
        "{% for message in messages %}\n  {% if loop.first and message['role'] != 'system' %}\nno\n  {% endif %}\n\
         {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\n\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere is\nmy <order> & \"it\"? 你好<|im_end|>\n\
         <|im_start|>assistant\n",
    );
    check("{{ bos_token }}{{ messages[0].content | trim }}{{ eos_token }}{{ unk_token }}", "<s>Be brief.</s>");
    check("{{ messages[-1]['content'] | tojson }}", r#""Where is\nmy <order> & \"it\"? 你好""#);
    check("{{ [1, {'a': none, 'b': true}] | tojson }}", r#"[1, {"a": null, "b": true}]"#);
    check("{{ [1] | tojson(indent=2) }}", "[\n  1\n]");
    check("{{ strftime_now('%d %B %Y') }}", "14 November 2023");
    check("{{ messages[1:] | length }}{{ messages[0]['role'].upper() }}{{ ' x '.strip() }}", "1SYSTEMx");
    check("{{ 'a</think>b'.split('</think>')[-1] }}{{ messages[0].get('nothing', 'none') }}", "bnone");
    check(
        "{%- set n = namespace(last='') %}{% for m in messages %}{% set n.last = m.role %}{% endfor %}{{ n.last }}",
        "user",
    );
    check("{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %},{% endfor %}", "system,user,");
    check("a {%- generation -%} b {%- endgeneration -%} c", "abc");
    check("{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}", "system");
    check(
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>{% endif %}",
        "<think>\n\n</think>",
    );
    check("{% if tools %}tools{% endif %}{% if tools is not none %}tools{% endif %}", "");
}

#[test]
fn a_message_is_data() {
    let template = ChatTemplate::new(Path::new("t"), "{{ messages[0].content }}", BTreeMap::new()).expect("parsed");
    let hostile = "{{ raise_exception('no') }}{% for m in messages %}x{% endfor %}";
    let message = ChatMessage { role: "user".to_owned(), content: hostile.to_owned() };
    assert_eq!(template.render(&[message], true, now()).expect("rendered"), hostile);
}

#[test]
fn what_a_template_refuses_is_told() {
    let refused = render("{{ raise_exception('Only user and assistant roles are supported!') }}").expect_err("refused");
    assert!(refused.starts_with("cannot render the chat template of t: "), "{refused}");
    assert!(refused.contains("Only user and assistant roles are supported!"), "{refused}");
    assert!(render("{% if %}").expect_err("no Jinja").contains("syntax error"));
    assert!(render("{{ messages | tojson(ensure_ascii=true) }}").is_err());
    assert!(render("{{ messages | tojson(width=3) }}").is_err());
    assert!(render("{% generation %}").is_err());
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert!(render(endless).expect_err("too long").ends_with("it takes more than 10000000 steps"));
}

#[test]
fn the_template_is_found_where_checkpoints_keep_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    let open = || ChatTemplate::open(folder.path()).map_err(|error| crate::error::chain(&error));
    let text = || open().expect("opened").expect("a template").render(&messages(), false, now()).expect("rendered");
    assert!(open().expect("nothing there").is_none());
    write(CONFIG, "{}");
    assert!(open().expect("no template").is_none());
    write(CONFIG, r#"{"chat_template": "one{{ bos_token }}", "bos_token": {"content": "<b>", "lstrip": false}}"#);
    assert_eq!(text(), "one<b>");
    let several = json!([{ "name": "tool_use", "template": "tools" }, { "name": "default", "template": "default{{ eos_token }}" }]);
    write(CONFIG, &json!({ "chat_template": several, "bos_token": null }).to_string());
    write(SPECIAL, r#"{"eos_token": "<e>"}"#);
    assert_eq!(text(), "default<e>");
    write(CONFIG, r#"{"chat_template": [{"name": "rag", "template": "x"}]}"#);
    assert!(open().expect_err("none by default").ends_with("tokenizer_config.json: none named default, only rag"));
    write(FILE, "file");
    assert_eq!(text(), "file");
}
