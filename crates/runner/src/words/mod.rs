//! Text for people, whatever it speaks of.

pub(crate) mod html;
pub(crate) mod table;
pub(crate) mod time;
