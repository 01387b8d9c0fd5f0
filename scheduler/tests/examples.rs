//! The examples do what they say.

#[path = "../examples/per_user.rs"]
#[expect(dead_code, reason = "its own main")]
mod per_user;
#[path = "../examples/rate_limiter.rs"]
#[expect(dead_code, reason = "its own main")]
mod rate_limiter;

#[test]
fn a_limiter_for_each_key_limits_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = [
        "ann: 5 of 8 taken",
        "ben, who is another object: 3 of 3 taken",
        "ann is to wait up to a minute: true",
        "after a restart: still to wait",
        "eve: taken",
        "eve: taken",
        "eve is forgotten",
    ];
    assert_eq!(rate_limiter::run(dir.path()).unwrap(), wanted);
}

#[test]
fn what_belongs_to_a_user_is_in_one_object() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = [
        r#"ann is {"full_name":"Ann of the hedge","credits":0}"#,
        "ann earned 1000",
        "ann wrote to ben: true",
        "ben could write to ann: false",
        "ann wrote to ben: come over",
        "ann got 0 letters",
    ];
    assert_eq!(per_user::run(dir.path()).unwrap(), wanted);
    // Its directory is an ordinary store, and may be there already.
    let again = per_user::run(dir.path()).unwrap();
    assert_eq!(again[0], r#"ann is {"full_name":"Ann of the hedge","credits":990}"#);
    assert_eq!(again[1..], wanted[1..]);
}
