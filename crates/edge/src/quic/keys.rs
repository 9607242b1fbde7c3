//! What all workers of a process share so that each can stand by what another has promised.

use std::sync::Arc;

use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};
use quinn::crypto::{HandshakeTokenKey, HmacKey, ServerConfig as Tls};
use quinn::{BloomTokenLog, ServerConfig, ValidationTokenConfig};

/// The keys of address tokens and stateless resets, and the record of tokens that were used.
#[derive(Clone)]
pub struct Keys {
    tokens: Arc<dyn HandshakeTokenKey>,
    /// With one record for all: a token is good once, whichever worker it comes to.
    validation: ValidationTokenConfig,
    reset: Arc<dyn HmacKey>,
}

impl Keys {
    /// The keys that follow from a secret. What a process with it has promised, another with it keeps.
    #[must_use]
    pub fn new(secret: &[u8; 64]) -> Keys {
        let tokens = Salt::new(HKDF_SHA256, b"foregate address tokens").extract(secret);
        let reset = hmac::sign(&Key::new(HMAC_SHA256, secret), b"foregate stateless resets");
        let mut validation = ValidationTokenConfig::default();
        validation.log(Arc::new(BloomTokenLog::default()));
        Keys { tokens: Arc::new(tokens), reset: Arc::new(Key::new(HMAC_SHA256, reset.as_ref())), validation }
    }

    /// What to accept connections with, as far as promises go; transport parameters are quinn's own.
    #[must_use]
    pub fn server_config(&self, tls: Arc<dyn Tls>) -> ServerConfig {
        let mut config = ServerConfig::new(tls, self.tokens.clone());
        config.validation_token_config(self.validation.clone());
        config
    }

    pub(super) fn reset(&self) -> Arc<dyn HmacKey> {
        self.reset.clone()
    }
}
