//! What was asked: the experiment file, as written ([`spec`]) and as it will run ([`resolved`], [`plan`]).

pub(crate) mod brought;
pub(crate) mod captions;
pub(crate) mod image_table;
pub(crate) mod jobs;
pub(crate) mod keys;
pub(crate) mod matrix;
pub(crate) mod methods;
pub(crate) mod pattern;
pub(crate) mod plan;
pub(crate) mod prompts;
pub(crate) mod protocol;
pub(crate) mod resolve;
pub(crate) mod resolved;
pub(crate) mod schema;
pub(crate) mod spec;
pub(crate) mod upscalers;
pub(crate) mod yaml;
