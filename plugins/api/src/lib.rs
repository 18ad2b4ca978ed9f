//! What a filter is, what it may see and change, and the registry of filters
