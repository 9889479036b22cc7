//! What the fuzz targets share: how inputs are cut, and second opinions on what `hutong-http` says. A second
//! opinion is written from the standard alone, as plainly as it goes: it may be slow, and must not use the code
//! that it judges.

pub mod cuts;
pub mod fields;
pub mod pairs;
pub mod reference;
