//! What every placement policy must do (being written).
