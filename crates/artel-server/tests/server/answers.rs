//! What is answered to requests that make sense.

use artel_server::ServerConfig;
use serde_json::{Value, json};

use crate::support::{ANSWER, QUESTION, TestServer};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn completion(more: Value) -> Value {
    with(json!({"model": "tally", "prompt": "Tom has 3 apples and", "max_tokens": 24}), more)
}

fn chat(more: Value) -> Value {
    with(json!({"model": "default", "messages": [{"role": "user", "content": QUESTION}]}), more)
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// What a stream says of choice `index`: its text, the values of its logprobs, why it ended.
fn joined(chunks: &[Value], index: usize) -> (String, Vec<Value>, Value) {
    let (mut text, mut logprobs, mut end) = (String::new(), Vec::new(), Value::Null);
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    for choice in choices.filter(|choice| choice["index"] == index) {
        let new = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str());
        text.push_str(new.unwrap_or_default());
        for list in [&choice["logprobs"]["content"], &choice["logprobs"]["token_logprobs"]] {
            logprobs.extend(list.as_array().into_iter().flatten().cloned());
        }
        if !choice["finish_reason"].is_null() {
            end = json!([choice["finish_reason"], choice["stop_reason"]]);
        }
    }
    (text, logprobs, end)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_is_answered_under_both_names() {
    let server = TestServer::start().await;
    for model in ["tally", "default"] {
        let answer = server.ask(CHAT, &chat(json!({"model": model}))).await;
        let choice = &answer["choices"][0];
        assert!(choice["message"]["content"].as_str().unwrap().ends_with(ANSWER), "{answer}");
        assert_eq!(
            (&choice["finish_reason"], &choice["stop_reason"]),
            (&json!("stop"), &Value::Null)
        );
        assert_eq!(
            (&answer["object"], &answer["model"]),
            (&json!("chat.completion"), &json!("tally"))
        );
        let usage = |field: &str| answer["usage"][field].as_u64().unwrap();
        assert!(usage("prompt_tokens") > 20 && usage("completion_tokens") > 10);
        assert_eq!(usage("total_tokens"), usage("prompt_tokens") + usage("completion_tokens"));
    }
    server.settle().await;
}

/// The same but for the last bits of numbers, which may depend on the batch.
fn alike(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| alike(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len() && one.iter().all(|(name, one)| alike(one, &other[name]))
        }
        (Value::Number(one), Value::Number(other)) => {
            (one.as_f64().unwrap() - other.as_f64().unwrap()).abs() < 1e-3
        }
        _ => one == other,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_what_the_whole_answer_says() {
    let server = TestServer::start().await;
    let common = [
        json!({}),
        json!({"n": 3, "temperature": 1.0, "seed": 7}),
        json!({"stop": ["3"], "temperature": 0.8, "seed": -3, "top_k": 20, "top_p": 0.9}),
        json!({"min_p": 0.1, "temperature": 1, "seed": 1, "logit_bias": {"100": -100}}),
    ];
    for more in common {
        for (path, body) in [
            (COMPLETIONS, completion(with(json!({"logprobs": 2}), more.clone()))),
            (COMPLETIONS, completion(with(json!({"logprobs": 0, "echo": true}), more.clone()))),
            (CHAT, chat(with(json!({"logprobs": true, "top_logprobs": 3}), more.clone()))),
        ] {
            let whole = server.ask(path, &body).await;
            let options = json!({"stream": true, "stream_options": {"include_usage": true}});
            let chunks = server.stream(path, &with(body.clone(), options)).await;
            let usage = chunks.last().unwrap();
            // The second time the prompt may be found in the cache.
            for field in ["prompt_tokens", "completion_tokens", "total_tokens"] {
                assert_eq!(usage["usage"][field], whole["usage"][field], "{body}");
            }
            assert_eq!(usage["choices"], json!([]));
            for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
                let (text, logprobs, end) = joined(&chunks, index);
                let said = choice["text"].as_str().or(choice["message"]["content"].as_str());
                assert_eq!(Some(&text[..]), said, "{body}");
                assert_eq!(end, json!([choice["finish_reason"], choice["stop_reason"]]));
                let content = choice["logprobs"]["content"].as_array();
                let expected = content.or(choice["logprobs"]["token_logprobs"].as_array());
                let expected = json!(expected.unwrap());
                assert!(alike(&json!(logprobs), &expected), "{body}: {logprobs:?} {expected}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_are_those_of_consecutive_seeds() {
    let server = TestServer::start().await;
    let sampled = |more| completion(with(json!({"temperature": 1.5}), more));
    let three = server.ask(COMPLETIONS, &sampled(json!({"n": 3, "seed": 5}))).await;
    let texts: Vec<&Value> = (0..3).map(|index| &three["choices"][index]["text"]).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{three}");
    for (index, text) in texts.iter().enumerate() {
        let alone = server.ask(COMPLETIONS, &sampled(json!({"seed": 5 + index}))).await;
        assert_eq!(&&alone["choices"][0]["text"], text);
    }
    let usage = &three["usage"];
    assert_eq!(usage["completion_tokens"], 72);
    assert!(usage["prompt_tokens"].as_u64().unwrap() < 20, "the prompt counts once: {usage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_are_texts_or_tokens_one_or_many() {
    let server = TestServer::start().await;
    let text = "Tom has 3 apples and";
    let tokens = server.ask("/tokenize", &json!({"prompt": text})).await;
    let ids = tokens["tokens"].clone();
    assert_eq!(tokens["count"], ids.as_array().unwrap().len());
    let back = server.ask("/detokenize", &json!({"tokens": ids})).await;
    assert_eq!(back["prompt"], text);
    let strings = json!({"prompt": text, "return_token_strs": true});
    let strings = server.ask("/tokenize", &strings).await["token_strs"].clone();
    let joined: String = strings.as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    assert_eq!(joined, text);
    let messages = json!({"messages": [{"role": "user", "content": text}]});
    let chat = server.ask("/tokenize", &messages).await["count"].as_u64().unwrap();
    assert_eq!(chat, tokens["count"].as_u64().unwrap() + 2, "<|user|> and <|assistant|>");

    let expected = server.ask(COMPLETIONS, &completion(json!({}))).await["choices"].clone();
    for prompt in [json!(ids), json!([text]), json!([ids])] {
        let answer = server.ask(COMPLETIONS, &completion(json!({"prompt": prompt}))).await;
        assert_eq!(answer["choices"], expected);
    }
    let body = completion(json!({"prompt": [text, "A farm has"], "n": 2, "max_tokens": 3}));
    let answer = server.ask(COMPLETIONS, &body).await;
    let indices = answer["choices"].as_array().unwrap().iter().map(|choice| &choice["index"]);
    assert_eq!(indices.cloned().collect::<Value>(), json!([0, 1, 2, 3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_stop_where_they_are_told_to() {
    let server = TestServer::start().await;
    let whole = server.ask(CHAT, &chat(json!({}))).await;
    let whole = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let (before, _) = whole.split_once("####").unwrap();
    for stop in [json!("####"), json!(["nowhere", "####"])] {
        let answer = server.ask(CHAT, &chat(json!({"stop": stop}))).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], before);
        assert_eq!(choice["finish_reason"], "stop");
        assert_eq!(choice["stop_reason"], "####");
    }
    let short = server.ask(CHAT, &chat(json!({"max_completion_tokens": 4}))).await;
    assert_eq!(short["choices"][0]["finish_reason"], "length");
    assert_eq!(short["usage"]["completion_tokens"], 4);
    let long = chat(json!({"ignore_eos": true, "max_tokens": 150}));
    assert_eq!(server.ask(CHAT, &long).await["usage"]["completion_tokens"], 150);
    let end = json!({"stop_token_ids": [1], "ignore_eos": true});
    let answer = server.ask(CHAT, &chat(end)).await;
    assert_eq!(answer["choices"][0]["stop_reason"], 1);
    let usual = server.ask(COMPLETIONS, &json!({"prompt": "1 + 1 =", "ignore_eos": true})).await;
    assert_eq!(usual["usage"]["completion_tokens"], 16);
    let minimum = chat(json!({"min_tokens": 100, "max_tokens": 120}));
    let tokens = server.ask(CHAT, &minimum).await["usage"]["completion_tokens"].clone();
    assert!(tokens.as_u64().unwrap() >= 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn logprobs_are_those_of_the_tokens() {
    let server = TestServer::start().await;
    let answer = server.ask(COMPLETIONS, &completion(json!({"logprobs": 3, "echo": true}))).await;
    let choice = &answer["choices"][0];
    let lists = &choice["logprobs"];
    let list = |name: &str| lists[name].as_array().unwrap();
    let text: String = list("tokens").iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(choice["text"], text);
    assert_eq!(
        (&lists["token_logprobs"][0], &lists["top_logprobs"][0]),
        (&Value::Null, &Value::Null)
    );
    let prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    for at in prompt..list("tokens").len() {
        let token = lists["tokens"][at].as_str().unwrap();
        let top = lists["top_logprobs"][at].as_object().unwrap();
        assert_eq!(top.len(), 3, "greedy: the token is one of the most probable");
        assert_eq!(top[token], lists["token_logprobs"][at]);
        let best = top.values().map(|value| value.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert_eq!(top[token].as_f64().unwrap(), best);
        let offset = lists["text_offset"][at].as_u64().unwrap() as usize;
        assert!(text[offset..].starts_with(token));
    }
    let only = completion(json!({"logprobs": 1, "echo": true, "max_tokens": 0}));
    let only = server.ask(COMPLETIONS, &only).await;
    assert_eq!(only["choices"][0]["text"], "Tom has 3 apples and");
    assert_eq!(only["usage"]["completion_tokens"], 0);
    let known = only["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().len();
    assert_eq!(known, prompt);

    let answer = server.ask(CHAT, &chat(json!({"logprobs": true, "top_logprobs": 2}))).await;
    let choice = &answer["choices"][0];
    let content = choice["logprobs"]["content"].as_array().unwrap();
    let bytes = content.iter().flat_map(|token| token["bytes"].as_array().unwrap());
    let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
    assert_eq!(choice["message"]["content"], String::from_utf8(bytes).unwrap());
    for token in content {
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(token["top_logprobs"][0]["token"], token["token"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_the_form_that_is_asked_for() {
    let server = TestServer::start().await;
    let schema = json!({
        "type": "object",
        "properties": {
            "answer": {"$ref": "#/$defs/number"},
            "unit": {"enum": ["pencils", "boxes"]},
        },
        "required": ["answer", "unit"],
        "additionalProperties": false,
        "$defs": {"number": {"type": "integer", "minimum": 0, "maximum": 99}},
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
    for seed in 0..4 {
        let more = json!({"response_format": format, "temperature": 1, "seed": seed});
        let answer = server.ask(CHAT, &chat(more)).await;
        let choice = &answer["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap();
        let object: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("{text}"));
        assert!((0..=99).contains(&object["answer"].as_u64().unwrap()), "{text}");
        assert!(["pencils", "boxes"].contains(&object["unit"].as_str().unwrap()), "{text}");
        assert_eq!(choice["finish_reason"], "stop");
    }
    let object = json!({"response_format": {"type": "json_object"}, "max_tokens": 40});
    let answer = server.ask(CHAT, &chat(object)).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.trim_start().starts_with('{'), "{text}");
    let text = json!({"response_format": {"type": "text"}});
    let answer = server.ask(CHAT, &chat(text)).await;
    assert!(answer["choices"][0]["message"]["content"].as_str().unwrap().ends_with(ANSWER));
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_are_called_where_that_is_demanded() {
    let server = TestServer::start().await;
    let tool = |name: &str, field: &str| {
        let properties = json!({field: {"type": "integer", "minimum": 0, "maximum": 99}});
        let parameters = json!({"type": "object", "properties": properties, "required": [field]});
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    let tools = json!([tool("add", "a"), tool("take", "b")]);
    let named = json!({"type": "function", "function": {"name": "take"}});
    for (choice, several) in [(json!("required"), false), (named, true)] {
        let more = json!({
            "tools": tools, "tool_choice": choice, "parallel_tool_calls": several,
            "temperature": 1, "seed": 3, "max_tokens": 200,
        });
        let answer = server.ask(CHAT, &chat(more.clone())).await;
        let whole = &answer["choices"][0];
        assert_eq!(whole["finish_reason"], "tool_calls", "{answer}");
        assert_eq!(whole["message"]["content"], Value::Null);
        let calls = whole["message"]["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1);
        let function = &calls[0]["function"];
        let field = if function["name"] == "add" { "a" } else { "b" };
        assert!(!several || function["name"] == "take");
        let arguments: Value =
            serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        assert!(arguments[field].as_u64().unwrap() <= 99, "{answer}");
        let chunks = server.stream(CHAT, &with(chat(more), json!({"stream": true}))).await;
        let deltas = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"][0]);
        let streamed: Vec<&Value> = deltas.filter(|call| !call.is_null()).collect();
        assert_eq!(streamed.len(), 1);
        assert_eq!(&streamed[0]["function"], function);
    }
    let none = chat(json!({"tools": tools, "tool_choice": "none"}));
    let answer = server.ask(CHAT, &none).await;
    assert!(answer["choices"][0]["message"]["content"].as_str().unwrap().ends_with(ANSWER));
    // The bundled model's template does not say how it calls functions.
    for (choice, why) in
        [(json!("auto"), "required"), (json!("perhaps"), "none"), (json!({}), "names")]
    {
        let (status, answer) =
            server.post(CHAT, &chat(json!({"tools": tools, "tool_choice": choice}))).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!("tool_choice")));
        assert!(answer["error"]["message"].as_str().unwrap().contains(why), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_tells_what_it_is_and_what_it_does() {
    let config = ServerConfig { metrics_prefix: "vllm".to_owned(), ..ServerConfig::default() };
    let server = TestServer::with(Default::default(), config).await;
    let models: Value = server.get("/v1/models").await.json().await.unwrap();
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][0]["root"]),
        (&json!("tally"), &json!("tally"))
    );
    assert_eq!(models["data"][0]["max_model_len"], 1024);
    for name in ["tally", "default"] {
        let model: Value = server.get(&format!("/v1/models/{name}")).await.json().await.unwrap();
        assert_eq!(model["id"], "tally");
    }
    assert_eq!(server.get("/health").await.status(), 200);
    let version: Value = server.get("/version").await.json().await.unwrap();
    assert_eq!(version["version"], "0.0.0");

    let answer = server.ask(CHAT, &chat(json!({}))).await;
    server.settle().await;
    let tokens = answer["usage"]["completion_tokens"].as_f64().unwrap();
    assert_eq!(server.metric("vllm:generation_tokens_total").await, tokens);
    assert_eq!(server.metric("vllm:request_success_total").await, 1.0);
    assert_eq!(server.metric("vllm:time_to_first_token_seconds_count").await, 1.0);
    assert_eq!(server.metric("vllm:inter_token_latency_seconds_count").await, tokens - 2.0);
    assert_eq!(server.metric("vllm:e2e_request_latency_seconds_count").await, 1.0);
    assert!(server.metric("artel:steps_total").await >= tokens - 1.0);
    assert!(server.metric("artel:step_seconds_total").await > 0.0);
    // Four experts a token in each of four layers, for all tokens but the last.
    let computed = answer["usage"]["total_tokens"].as_f64().unwrap() - 1.0;
    assert_eq!(server.metric("artel:expert_tokens_total").await, computed * 16.0);
    let steps = server.metric("artel:steps_total").await;
    assert_eq!(server.metric("artel:active_experts_count").await, 4.0 * steps);
    assert!(server.metric("artel:active_experts_sum").await >= 4.0 * 4.0 * steps);
    let text = server.get("/metrics").await.text().await.unwrap();
    assert!(text.contains("# TYPE artel:active_experts summary"));
    for layer in 2..6 {
        assert!(text.contains(&format!("layer=\"{layer}\",expert=\"15\"")), "{text}");
    }
    assert_eq!(text.matches("artel:expert_tokens_total{").count(), 4 * 16, "{text}");

    let page = server.get("/").await;
    assert!(
        page.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'")
    );
    let page = page.text().await.unwrap();
    assert!(page.contains("page.js") && !page.contains("//"), "the page asks nobody else");
    assert_eq!(server.get("/page.js").await.status(), 200);
}
