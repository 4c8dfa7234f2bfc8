use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;

use super::*;

fn template(text: &str) -> ChatTemplate {
    let special_tokens = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}});
    ChatTemplate {
        templates: named_templates(Some(&text.into())),
        special_tokens: special_tokens_of(special_tokens),
    }
}

fn special_tokens_of(config: Value) -> Map<String, Value> {
    special_tokens(config.as_object().expect("an object"))
}

fn render(text: &str) -> Result<String> {
    let messages = [Message::new("user", "hi")];
    let now = UNIX_EPOCH + Duration::from_secs(1_709_211_909); // 2024-02-29 13:05:09 UTC
    template(text).render(&Chat { now, ..Chat::new(&messages) })
}

#[test]
fn renders_as_transformers_does() {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("../../tests/fixtures/text/chats.json")).unwrap();
    assert_eq!(cases.len(), 7);
    for (number, case) in cases.iter().enumerate() {
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let chat = Chat {
            tools: case["tools"].as_array().unwrap(),
            ending: match case["add_generation_prompt"].as_bool().unwrap() {
                true => Ending::GenerationPrompt,
                false => Ending::LastMessage,
            },
            variables: case["variables"].as_object().unwrap().clone(),
            ..Chat::new(&messages)
        };
        let rendered = template(case["template"].as_str().unwrap()).render(&chat).unwrap();
        assert_eq!(rendered, case["rendered"].as_str().unwrap(), "case {number}");
    }
}

#[test]
fn dates_are_formatted() {
    let cases = [
        ("%Y-%m-%d", "2024-02-29"),
        ("%d %B %Y, %A", "29 February 2024, Thursday"),
        ("%-d %b %y %a %H:%M:%S", "29 Feb 24 Thu 13:05:09"),
        ("%-I:%M %p 100%%", "1:05 PM 100%"),
    ];
    for (format, expected) in cases {
        let text = render(&format!("{{{{ strftime_now('{format}') }}}}")).unwrap();
        assert_eq!(text, expected);
    }
    assert!(render("{{ strftime_now('%Q') }}").is_err());
}

#[test]
fn dates_across_centuries() {
    // Days of the week and leap days around 1900, 2000 and 2100.
    let cases = [
        (-2_203_891_200, "1900-03-01 Thu"),
        (-1, "1969-12-31 Wed"),
        (951_782_400, "2000-02-29 Tue"),
        (4_107_542_400, "2100-03-01 Mon"),
    ];
    for (seconds, expected) in cases {
        let offset = Duration::from_secs(i64::unsigned_abs(seconds));
        let now = if seconds < 0 { UNIX_EPOCH - offset } else { UNIX_EPOCH + offset };
        assert_eq!(python::strftime("%Y-%m-%d %a", now).unwrap(), expected);
    }
}

#[test]
fn refusals_carry_the_words_of_the_template() {
    let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert!(error.to_string().contains("roles must alternate"), "{error}");
    assert!(matches!(error, ModelError::ChatTemplate { .. }));
}

#[test]
fn broken_and_endless_templates_are_errors() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    for text in ["{% if %}", "{{ messages[0].nothing.more }}", "{{ nothing() }}", endless] {
        assert!(matches!(render(text), Err(ModelError::ChatTemplate { .. })), "{text}");
    }
}

#[test]
fn the_template_for_tools_is_taken_when_there_are_tools() {
    let list = json!([
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "tools"},
        {"nonsense": 1},
    ]);
    let templates = named_templates(Some(&list));
    assert_eq!(templates.len(), 2);
    let template = ChatTemplate { templates, special_tokens: Map::new() };
    let messages = [Message::new("user", "hi")];
    assert_eq!(template.render(&Chat::new(&messages)).unwrap(), "plain");
    let tools = [json!({"name": "f"})];
    let chat = Chat { tools: &tools, ..Chat::new(&messages) };
    assert_eq!(template.render(&chat).unwrap(), "tools");
}

#[test]
fn special_tokens_are_strings_or_objects() {
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false},
                        "pad_token": null, "add_bos_token": true, "model_max_length": 5});
    let tokens = special_tokens_of(config);
    assert_eq!(Value::Object(tokens), json!({"bos_token": "<s>", "eos_token": "</s>"}));
}
