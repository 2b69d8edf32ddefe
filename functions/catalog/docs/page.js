// Shows the description that this very API serves, and sends requests to the API and to nobody else.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#description",
  deepLinking: true,
  // A stored token would outlive the page.
  persistAuthorization: false,
  // No badge of a validator on another host.
  validatorUrl: null,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  syntaxHighlight: { activated: true, theme: "agate" },
});
