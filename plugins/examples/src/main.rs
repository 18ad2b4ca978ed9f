//! A gateway with filters of one's own.

fn main() -> std::process::ExitCode {
    spillway::Builder::new().filters(spillway_example_filters::registry()).run()
}
