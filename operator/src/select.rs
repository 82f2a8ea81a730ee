//! Which labels a selector selects: as the types of the policies have it.

pub use toolweir_crds::select::{Labels, selects};
