//! Credentials of MQTT clients as text: rules, documents, and those of TBMQ.

pub(crate) mod document;
pub(crate) mod items;
pub(crate) mod java;
pub(crate) mod rule;
pub(crate) mod tbmq;

pub(crate) use document::Document;
pub(crate) use rule::Rule;
