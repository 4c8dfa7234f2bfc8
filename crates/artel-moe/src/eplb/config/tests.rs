use super::*;

#[test]
fn published_fields_have_their_published_defaults() {
    let defaults = EplbConfig::from_json("{}").unwrap();
    assert_eq!(defaults, EplbConfig::default());
    assert_eq!((defaults.window_size, defaults.step_interval), (1000, 3000));
    assert_eq!((defaults.num_redundant_experts, defaults.log_balancedness_interval), (0, 1));
    assert!(defaults.use_async && !defaults.log_balancedness);
    assert!(!defaults.enable_migration_batching && defaults.communicator.is_none());
    assert_eq!(EplbConfig::from_json(r#"{"policy":"default"}"#).unwrap(), defaults);
}

#[test]
fn every_field_is_read_and_written() {
    let values = [
        ("window_size", "7"),
        ("step_interval", "9"),
        ("num_redundant_experts", "1023"),
        ("log_balancedness", "true"),
        ("log_balancedness_interval", "4"),
        ("use_async", "false"),
        ("policy", "\"none\""),
        ("communicator", "\"memory\""),
        ("enable_migration_batching", "true"),
        ("max_moves_per_layer", "8"),
        ("resplit_interval", "50"),
        ("replica_rule", "\"vllm\""),
        ("balance_batches", "true"),
        ("memory_bound_below", "16"),
        ("move_timeout_seconds", "5"),
    ];
    assert_eq!(values.map(|(field, _)| field), EplbConfig::FIELDS);
    let mut config = EplbConfig::default();
    for (field, value) in values {
        let before = config.clone();
        config.set(field, value).unwrap();
        assert_ne!(config, before, "{field}");
    }
    let text = serde_json::to_string(&config).unwrap();
    for (field, value) in values {
        assert!(text.contains(&format!("\"{field}\":{value}")), "{field} in {text}");
    }
    assert_eq!(EplbConfig::from_json(&text).unwrap(), config);
    // Names need no quotation marks on a command line.
    config.set("policy", "balanced").unwrap();
    config.set("max_moves_per_layer", "null").unwrap();
    assert_eq!((config.policy, config.max_moves_per_layer), (PolicyName::Balanced, None));
}

#[test]
fn unknown_fields_are_named_with_the_known_ones() {
    let error = EplbConfig::from_json(r#"{"windowsize": 1}"#).unwrap_err().to_string();
    assert!(error.contains("is windowsize") && error.contains("window_size, "), "{error}");
    assert!(EplbConfig::default().set("", "1").is_err());
    for text in ["", "[]", "3", "{\"window_size\": }", "null"] {
        let error = EplbConfig::from_json(text).unwrap_err().to_string();
        assert!(error.contains("JSON object"), "{error}");
    }
}

#[test]
fn wrong_values_are_named_with_their_range() {
    for (field, text, allowed) in [
        ("window_size", "0", "1 to"),
        ("window_size", "-1", "1 to"),
        ("window_size", "1.5", "1 to"),
        ("step_interval", "0", "1 to"),
        ("step_interval", "18446744073709551615", "1 to"),
        ("num_redundant_experts", "1024", "0 to 1023"),
        ("num_redundant_experts", "many", "0 to 1023"),
        ("log_balancedness", "1", "true or false"),
        ("log_balancedness_interval", "0", "1 to"),
        ("use_async", "yes", "true or false"),
        ("policy", "best", "greedy, balanced, resplit, none, default"),
        ("policy", "null", "greedy, balanced"),
        ("replica_rule", "random", "vllm, salted, shares, or null"),
        ("communicator", "pynccl", "\"memory\" or null"),
        ("max_moves_per_layer", "0", "or null"),
        ("resplit_interval", "0", "or null"),
        ("memory_bound_below", "-3", "0 to"),
        ("move_timeout_seconds", "0", "1 to"),
    ] {
        let error = EplbConfig::default().set(field, text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{field} is {text},")), "{error}");
        assert!(error.contains(allowed), "{error}");
    }
}

#[test]
fn the_whole_is_checked_against_the_layer() {
    let config = EplbConfig { num_redundant_experts: 32, ..EplbConfig::default() };
    let cluster = config.cluster(256, 32).unwrap();
    assert_eq!((cluster.ranks(), cluster.slots_per_rank()), (32, 9));
    let uneven = config.cluster(256, 7).unwrap_err().to_string();
    assert!(uneven.contains("is 288") && uneven.contains("multiple"), "{uneven}");
    assert!(config.cluster(0, 1).is_err() && config.cluster(256, 0).is_err());
    assert!(config.cluster(32_768, 32).is_err());
    let written = EplbConfig { window_size: 0, ..EplbConfig::default() };
    let error = written.cluster(4, 2).unwrap_err().to_string();
    assert!(error.starts_with("window_size is 0"), "{error}");
}

#[test]
fn names_mean_the_policies_of_those_names() {
    let names = PolicyName::ALL.iter().map(|name| name.name());
    assert!(names.clone().all(|name| crate::eplb::policy::NAMES.contains(&name)));
    assert_eq!(names.count(), crate::eplb::policy::NAMES.len());
    for &policy in PolicyName::ALL {
        let config = EplbConfig { policy, ..EplbConfig::default() };
        assert_eq!(config.policy(1).name(), policy.to_string());
    }
}

#[test]
fn policies_with_shares_are_obeyed() {
    let salt = ReplicaSalt::of_rank(0, 0);
    let rule = |policy, replica_rule| {
        EplbConfig { policy, replica_rule, ..EplbConfig::default() }.rule(salt)
    };
    assert_eq!(rule(PolicyName::Greedy, None), ReplicaRule::Salted(salt));
    assert_eq!(rule(PolicyName::Balanced, None), ReplicaRule::Shares(salt));
    let published = Some(ReplicaRuleName::Vllm);
    assert_eq!(rule(PolicyName::Balanced, published), ReplicaRule::TokenHash);
}
