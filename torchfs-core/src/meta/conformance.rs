//! What every `MetaStore` must do (being written).
