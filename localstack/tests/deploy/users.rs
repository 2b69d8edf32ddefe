//! Users: signing up, becoming an admin, and the tokens of the stack's user pool.
//!
//! The emulator deploys no routes for an HTTP API, so its authorizer cannot be asked. What the authorizer does is done
//! here instead: the token is checked by the pool's public keys, and its claims go into the event.

use holdfast_http::SERVICE_SCOPE;
use holdfast_testkit::event::event;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};

use crate::cloud::Cloud;

const PASSWORD: &str = "correct-Horse-7-battery";

/// Signs a user up with an address, under a name that nobody needs to know, and confirms it. (The emulator accepts any
/// code, and takes no code for a proof of the address.)
async fn sign_up(cloud: &Cloud, address: &str) {
    let name = format!("name-of-{}", address.replace('@', "-at-"));
    let (status, answer) = register(cloud, &name, json!([{"Name": "email", "Value": address}])).await;
    assert_eq!(status, 200, "{answer}");
    confirm(cloud, &name).await;
}

async fn register(cloud: &Cloud, name: &str, attributes: Value) -> (u16, Value) {
    let client = cloud.output("UserPoolClientId");
    let body = json!({"ClientId": client, "Username": name, "Password": PASSWORD, "UserAttributes": attributes});
    cloud.cognito(false, "SignUp", body).await
}

async fn confirm(cloud: &Cloud, name: &str) {
    let user = json!({"UserPoolId": cloud.output("UserPoolId"), "Username": name});
    let (status, answer) = cloud.cognito(true, "AdminConfirmSignUp", user.clone()).await;
    assert_eq!(status, 200, "{answer}");
    let mut proof = user;
    proof["UserAttributes"] = json!([{"Name": "email_verified", "Value": "true"}]);
    let (status, answer) = cloud.cognito(true, "AdminUpdateUserAttributes", proof).await;
    assert_eq!(status, 200, "{answer}");
}

/// Logs in, checks the access token as an authorizer does, and answers its claims.
async fn claims(cloud: &Cloud, address: &str) -> Value {
    let claims = verified(cloud, &tokens(cloud, address).await["AccessToken"]).await;
    // Access tokens of Cognito have no audience: API Gateway takes `client_id` for it.
    assert_eq!(claims["client_id"], cloud.output("UserPoolClientId"));
    assert_eq!(claims["token_use"], "access");
    claims
}

/// Logs in.
async fn tokens(cloud: &Cloud, address: &str) -> Value {
    let body = json!({
        "AuthFlow": "USER_PASSWORD_AUTH", "ClientId": cloud.output("UserPoolClientId"),
        "AuthParameters": {"USERNAME": address, "PASSWORD": PASSWORD},
    });
    let (status, mut answer) = cloud.cognito(false, "InitiateAuth", body).await;
    assert_eq!(status, 200, "{answer}");
    answer["AuthenticationResult"].take()
}

/// The claims of a token of the user pool.
async fn verified(cloud: &Cloud, token: &Value) -> Value {
    let token = token.as_str().expect("a token");
    let keys: JwkSet = serde_json::from_value(cloud.user_pool_keys().await).unwrap();
    let id = jsonwebtoken::decode_header(token).unwrap().kid.expect("a key's id");
    let key = DecodingKey::from_jwk(keys.find(&id).expect("the pool's key")).unwrap();
    let mut validation = Validation::new(Algorithm::RS256);
    validation.validate_aud = false;
    let claims = jsonwebtoken::decode::<Value>(token, &key, &validation).expect("a signature of the pool").claims;
    let issuer = claims["iss"].as_str().unwrap();
    assert!(issuer.ends_with(&format!("/{}", cloud.output("UserPoolId"))), "{issuer}");
    claims
}

/// The event of a request by somebody with these claims, which API Gateway hands over as text: a list as `[one two]`.
fn asks(name: &str, claims: &Value) -> Value {
    let mut request = event(name);
    let said = &mut request["requestContext"]["authorizer"]["jwt"]["claims"];
    *said = json!({});
    for (name, value) in claims.as_object().unwrap() {
        let words = |list: &Vec<Value>| list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
        said[name] = match value {
            Value::Array(list) => json!(format!("[{}]", words(list))),
            Value::String(text) => json!(text),
            other => json!(other.to_string()),
        };
    }
    request
}

/// Who signs up is a customer; only the account's credentials make an admin.
pub(crate) async fn only_the_account_makes_an_admin(cloud: &Cloud) {
    let (somebody, admin) = ("somebody@shop.example", "admin@shop.example");
    for address in [somebody, admin] {
        sign_up(cloud, address).await;
    }
    let group =
        |address: &str| json!({"UserPoolId": cloud.output("UserPoolId"), "Username": address, "GroupName": "admin"});
    let (status, answer) = cloud.cognito(true, "AdminAddUserToGroup", group(admin)).await;
    assert_eq!(status, 200, "{answer}");
    let (status, answer) = cloud.cognito(false, "AdminAddUserToGroup", group(somebody)).await;
    assert_ne!(status, 200, "somebody made themselves an admin: {answer}");

    let theirs = claims(cloud, somebody).await;
    assert!(theirs["cognito:groups"].as_array().is_none_or(Vec::is_empty), "{theirs}");
    cloud.http("AdminFunction", &asks("admin/list-products", &theirs)).await.is(403);
    let theirs = claims(cloud, admin).await;
    assert_eq!(theirs["cognito:groups"], json!(["admin"]));
    cloud.http("AdminFunction", &asks("admin/list-products", &theirs)).await.is(200);
}

/// No attribute at the sign-up makes an admin: Cognito refuses attributes that the app client may not write. The emulator
/// accepts them, and then the token and the function must not.
pub(crate) async fn a_sign_up_brings_no_groups(cloud: &Cloud) {
    for attribute in ["cognito:groups", "custom:groups", "custom:role"] {
        let name = attribute.replace(':', "-");
        let address = format!("{name}@shop.example");
        let attributes = json!([{"Name": "email", "Value": address}, {"Name": attribute, "Value": "admin"}]);
        if register(cloud, &name, attributes).await.0 != 200 {
            continue;
        }
        confirm(cloud, &name).await;
        let theirs = claims(cloud, &address).await;
        assert!(theirs["cognito:groups"].as_array().is_none_or(Vec::is_empty), "{attribute}: {theirs}");
        cloud.http("AdminFunction", &asks("admin/list-products", &theirs)).await.is(403);
    }
    let body = json!({
        "ClientId": cloud.output("UserPoolClientId"), "Username": "short", "Password": "Short-1",
        "UserAttributes": [{"Name": "email", "Value": "short@shop.example"}],
    });
    let (status, answer) = cloud.cognito(false, "SignUp", body).await;
    assert_eq!(status, 400, "{answer}");
}

/// A sign-up with the address of an account is answered like any other.
pub(crate) async fn a_sign_up_does_not_tell_who_has_an_account(cloud: &Cloud) {
    sign_up(cloud, "known@shop.example").await;
    let mut answers = Vec::new();
    for (name, address) in [("one", "known@shop.example"), ("two", "unknown@shop.example")] {
        let (status, answer) = register(cloud, name, json!([{"Name": "email", "Value": address}])).await;
        let members: Vec<String> = answer.as_object().unwrap().keys().cloned().collect();
        answers.push((status, answer["UserConfirmed"].clone(), members));
    }
    assert_eq!(answers[0].0, 200, "{answers:?}");
    assert_eq!(answers[0], answers[1]);
}

/// API Gateway accepts both tokens of a user; the functions want the access token.
pub(crate) async fn an_id_token_is_refused(cloud: &Cloud) {
    sign_up(cloud, "page@shop.example").await;
    let theirs = verified(cloud, &tokens(cloud, "page@shop.example").await["IdToken"]).await;
    let answer = cloud.http("ReserveFunction", &asks("reserve/orders", &theirs)).await;
    assert!(answer.is(401)["detail"].as_str().unwrap().contains("ID token"), "{answer:?}");
}

/// A back end signs in with its client's secret, and no other client gets its scope.
pub(crate) async fn a_back_end_signs_in_by_client_credentials(cloud: &Cloud) {
    let client = cloud.output("ServiceClientId");
    let (status, answer) = cloud.client_credentials(client, SERVICE_SCOPE).await;
    assert_eq!(status, 200, "{answer}");
    let theirs = verified(cloud, &answer["access_token"]).await;
    assert_eq!((&theirs["sub"], &theirs["client_id"]), (&json!(client), &json!(client)));
    let mut request = asks("reserve/orders", &theirs);
    let answer = cloud.http("ReserveFunction", &request).await;
    assert_eq!(answer.is(400)["field"], "customer_id", "a service names the customer");
    request["rawQueryString"] = json!("customer_id=alice");
    request["queryStringParameters"] = json!({"customer_id": "alice"});
    cloud.http("ReserveFunction", &request).await.is(200);
    cloud.http("AdminFunction", &asks("admin/list-products", &theirs)).await.is(403);
    for other in ["UserPoolClientId", "ConsoleClientId"] {
        let (status, answer) = cloud.client_credentials(cloud.output(other), SERVICE_SCOPE).await;
        assert_eq!(status, 400, "{other}: {answer}");
    }
}
