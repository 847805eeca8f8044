//! Being written.

/// Being written.
#[derive(Clone, Debug, Default)]
pub struct LeastLoaded;
