//! Configuration: what is accepted, and what the errors say.

use turnflow_pipeline::Config;

#[test]
fn the_defaults_are_whole() {
    let config = Config::defaults();
    let written = toml::to_string(&config).expect("serialises");
    assert_eq!(Config::from_text(&written, "written").expect("reads back"), config);
}

#[test]
fn a_file_overrides_what_it_names() {
    let config =
        Config::from_text("[cache]\nsimilarity-min = 0.9\n\n[workers]\nthreads = 3\n", "t.toml").expect("valid");
    assert_eq!((config.cache.similarity_min, config.workers.threads), (0.9, 3));
    assert_eq!(config.limits, Config::defaults().limits);
}

#[test]
fn errors_name_place_and_key() {
    let check = |text: &str, expected: &str| {
        let error = Config::from_text(text, "t.toml").expect_err(text).to_string();
        assert!(error.starts_with(expected), "{text:?}\n got: {error}\nwant: {expected}");
    };
    check("[cache]\nsimilarity_min = 0.9\n", "t.toml:2: cache.similarity_min: unknown field `similarity_min`");
    check("\n[cash]\nexact = true\n", "t.toml:2: cash: unknown field `cash`");
    check("[workers]\n\nthreads = \"two\"\n", "t.toml:3: workers.threads: invalid type");
    check("workers.threads = 0\n", "t.toml:1: workers.threads = 0: must be at least 1");
    check("[cache]\nsimilarity-min = 1.5\n", "t.toml:2: cache.similarity-min = 1.5: must lie between 0 and 1");
    check("[limits]\nturns-in-flight-max = 9999\n", "t.toml: storage.commit-queue-max = 4096: must be at least");
    check("[tier.price]\ninput-per-million = -1.0\n", "t.toml:2: tier.price.input-per-million = -1: must be");
    check("[queue.weights]\nvoice = 0.0\n", "t.toml:2: queue.weights.voice = 0: must be a finite number above 0");
    check(
        "[gateway.limits.tenant]\nbudget-per-day = -1.0\n",
        "t.toml:2: gateway.limits.tenant.budget-per-day = -1: must be",
    );
    check("[gateway.limits.key]\nstreams = -1\n", "t.toml:2: gateway.limits.key.streams: invalid value");
    for origin in ["*", "shop.example", "https://", "https://shop.example/", "https://Shop.example", "https://a@b"] {
        let expected = format!("t.toml:2: server.grpc-web-origins = {origin:?}: must be origins");
        check(&format!("[server]\ngrpc-web-origins = [\"http://[::1]:80\", {origin:?}]\n"), &expected);
    }
    check("[server.tls]\ncert-file = \"c\"\n", "t.toml: server.tls.key-file = \"\": must name the private key");
    check("[server.tls]\nkey-file = \"k\"\n", "t.toml: server.tls.cert-file = \"\": must name the certificate");
    check("[server.tls]\nclient-ca-file = \"a\"\n", "t.toml: server.tls.cert-file = \"\": must name a certificate");
    check(
        "[server]\nlisten = \"127.0.0.1:9\"\n[http]\nlisten = \"127.0.0.1:9\"\n",
        "t.toml:2: server.listen = 127.0.0.1:9: must have another port than http.listen, which is 127.0.0.1:9 in t.toml:4",
    );
    for overlapping in ["127.0.0.1:7411", "0.0.0.0:7411", "[::]:7411"] {
        let expected = "t.toml: server.listen = 127.0.0.1:7411: must have another port";
        check(&format!("[http]\nlisten = \"{overlapping}\"\n"), expected);
    }
    for free in [
        "[server]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n",
        "[http]\nenabled = false\nlisten = \"127.0.0.1:7411\"\n",
    ] {
        Config::from_text(free, "t.toml").expect(free);
    }
    check("[http]\nconnections-max = 0\n", "t.toml:2: http.connections-max = 0: must be at least 1");
    check("[http]\nheader-bytes-max = 100\n", "t.toml:2: http.header-bytes-max = 100: must be at least 8192");
    check("[http]\nbody-bytes-max = 100\n", "t.toml:2: http.body-bytes-max = 100: must be at least limits.article");
    check("[queue]\naged-every = 0\n", "t.toml:2: queue.aged-every = 0: must be at least 1");
    check("[load]\nshedding-wait-ms = 9\n", "t.toml:2: load.shedding-wait-ms = 9: must be at least");
    check("[load]\ncalm-ms-max = 9\n", "t.toml:2: load.calm-ms-max = 9: must be at least");
    check("[load]\nsaturation-max = 0.0\n", "t.toml:2: load.saturation-max = 0: must be above 0");
    check("[routing]\ntarget = { quality = 2.0 }\n", "t.toml: routing.target.quality = 2: must lie between 0 and 1");
    check("[small-tier]\nthreads = 0\n", "t.toml:2: small-tier.threads = 0: must be at least 1");
    check(
        "[routing]\nenabled = true\n[small-tier]\nkind = \"burn\"\n",
        "t.toml: small-tier.burn.model = \"\": must name the folder of a checkpoint, because small-tier.kind",
    );
    check("[workers]\nthreads = 20000\n", "t.toml:2: workers.threads = 20000: must be at most 256");
    check(
        "[storage]\ncommit-queue-max = 9999999999\n",
        "t.toml:2: storage.commit-queue-max = 9999999999: must be at most",
    );
    check("[refresh]\nqueue-max = 0\n", "t.toml:2: refresh.queue-max = 0: must be at least 1");
    check("[refresh]\nin-flight-max = 999999\n", "t.toml:2: refresh.in-flight-max = 999999: must be at most");
    check("[tier]\nkind = \"magic\"\n", "t.toml:2: tier.kind: unknown variant `magic`");
    check("[tier]\nkind = \"burn\"\n", "t.toml: tier.burn.model = \"\": must name the folder");
    check("[tier]\nkind = \"openai\"\n", "t.toml: tier.openai.base-url: must ");
    let openai = |text: &str, expected: &str| {
        let sound = "base-url = \"http://x/v1\"\nmodel = \"m\"\n";
        check(&format!("[tier]\nkind = \"openai\"\n[tier.openai]\n{sound}{text}\n"), expected);
    };
    openai("top-p = 2.0", "t.toml:6: tier.openai.top-p: must lie between 0 and 1");
    openai("total-ms-max = 9", "t.toml: tier.openai.first-token-ms-max: must be less than total-ms-max, 9");
    openai("key-env = \"sk-0123\"", "t.toml:6: tier.openai.key-env: must be the name of an environment variable");
    openai("queue-max = 99999999", "t.toml:6: tier.openai.queue-max = 99999999: must be at most");
    openai("in-flight-max = 0", "t.toml:6: tier.openai.in-flight-max = 0: must be at least 1");
    check(
        "[tier.burn.engine]\nsequences-max = 999\n",
        "t.toml: tier.burn.engine.step-tokens-max = 256: must be at least",
    );
    check("[tier.sampling]\ntop-p = 0.0\n", "t.toml:2: tier.sampling.top-p = 0: must be above 0");
    check("[tier.burn]\nkv-bytes-max = 0\n", "t.toml:2: tier.burn.kv-bytes-max = 0: must be at least 1");
    check("[cache\n", "t.toml:1: ");
}

#[test]
fn secrets_in_wrong_places_are_not_told() {
    for (key, value) in [("base-url", "http://me:s3cret@x/v1"), ("base-url", "s3cret"), ("key-env", "sk-s3cret")] {
        let sound = if key == "base-url" { "" } else { "base-url = \"http://x/v1\"\n" };
        let text = format!("[tier]\nkind = \"openai\"\n[tier.openai]\nmodel = \"m\"\n{sound}{key} = \"{value}\"\n");
        let error = Config::from_text(&text, "t.toml").expect_err(&text);
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        assert!(error.to_string().contains(&format!(": tier.openai.{key}: must ")), "{error}");
    }
}

#[test]
fn the_key_is_read_when_the_tier_starts() {
    let text = "[tier]\nkind = \"openai\"\n[tier.openai]\nmodel = \"m\"\nbase-url = \"http://x/v1\"\nkey-file = \"/no/such\"\n";
    Config::from_text(text, "t.toml").expect("other commands need no key");
}

/// What stores are bound to that know the encoder that ships.
const SHIPPED: &str = "all-MiniLM-L6-v2 with adapter shop";

#[test]
fn a_verifier_is_used_under_the_settings_that_it_was_fitted_with() {
    let mut config = Config::defaults();
    assert!(turnflow_pipeline::verifier(&config, SHIPPED).expect("it fits").is_some());
    config.policy.relevance_min = 0.25;
    let error = turnflow_pipeline::verifier(&config, SHIPPED).expect_err("it was fitted with another").to_string();
    assert!(error.contains("\"shop\" was fitted with policy.relevance-min = 0.5, not 0.25"), "{error}");
    let other = "encoder 0 with adapter none";
    let error =
        turnflow_pipeline::verifier(&Config::defaults(), other).expect_err("it was fitted with another").to_string();
    assert!(error.contains("fitted with the encoder") && error.contains("policy.verifier = \"none\""), "{error}");
    config.policy.verifier = "none".into();
    assert!(turnflow_pipeline::verifier(&config, SHIPPED).expect("no verifier, no calibration").is_none());
}

#[test]
fn the_models_own_defaults_are_the_same() {
    let config = Config::defaults();
    assert_eq!(config.encoder, turnflow_models::EncoderConfig::default());
    assert_eq!(config.tier.engine(), turnflow_models::TierEngineConfig::default());
    assert_eq!(config.tier.openai, turnflow_models::RemoteConfig::new("", ""));
    assert_eq!(config.extractive, turnflow_models::ExtractiveConfig::default());
}

#[test]
fn every_setting_that_changes_answers_changes_the_scope() {
    let [shop, other] = ["shop", "other"].map(|tenant| turnflow_state::TenantId::new(tenant).unwrap());
    let scopes = |text: &str| Config::from_text(text, "t.toml").unwrap().scopes("a model");
    let scope = |text: &str| scopes(text).of(&shop);
    let defaults = scope("");
    for text in [
        "[scope]\nlanguage = \"de\"",
        "[scope]\nsystem-prompt = \"be kind\"",
        "[extractive]\npassages-max = 1",
        "[extractive]\nconfidence-min = 0.5",
        "[encoder]\nprecision = \"bf16\"",
        "[encoder]\nmodel = \"org/name\"\nadapter = \"none\"",
        "[encoder]\nquery-prefix = \"query: \"",
        "[knowledge]\nchunks-retrieved = 8",
        "[knowledge]\nscore-margin = 0.2",
        "[knowledge]\nchunk-tokens-max = 100",
    ] {
        assert_ne!(scope(text), defaults, "{text}");
    }
    let burn = Config::from_text("[tier]\nkind = \"burn\"\n[tier.burn]\nmodel = \"m\"\n", "t.toml").unwrap();
    assert_ne!(burn.scopes("a model").of(&shop), defaults);
    assert_ne!(burn.scopes("a model").of(&shop), burn.scopes("another").of(&shop));
    assert_ne!(scopes("").of(&other), defaults);
    assert_eq!(scope("[workers]\nthreads = 2\n[cache]\nsimilarity-min = 0.9"), defaults);
}

#[test]
fn a_small_tier_begins_with_the_defaults_of_a_tier_and_a_target_is_one() {
    let defaults = Config::defaults();
    assert_eq!(defaults.small_tier, defaults.tier);
    let text =
        "[tier]\nthreads = 3\n[small-tier.price]\ninput-per-million = 0.5\n[routing]\ntarget = { large-share = 0.3 }\n";
    let config = Config::from_text(text, "t.toml").expect("valid");
    assert_eq!((config.tier.threads, config.small_tier.threads), (3, 1), "a user's large tier is not a small one");
    assert_eq!((config.tier.price.input_per_million, config.small_tier.price.input_per_million), (0.0, 0.5));
    assert_eq!(config.routing.target, turnflow_models::Target::LargeShare(0.3));
}
