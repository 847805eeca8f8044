//! A naive namespace in memory (being written).
