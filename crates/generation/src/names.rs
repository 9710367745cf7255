//! Names of plain enums: those that serde reads from files are read from command lines too.

use crate::checkpoint::Dtype;
use crate::pipeline::SizeConditioning;
use crate::sampler::Spacing;
use crate::vae::VaeDecode;
use serde::de::{IntoDeserializer, value};

macro_rules! parsed_as_in_files {
    ($($name:ty),+ $(,)?) => {$(
        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(name: &str) -> std::result::Result<Self, String> {
                let name: value::StrDeserializer<'_, value::Error> = name.into_deserializer();
                serde::Deserialize::deserialize(name).map_err(|e| e.to_string())
            }
        }
    )+};
}

parsed_as_in_files!(Dtype, SizeConditioning, Spacing, VaeDecode);
