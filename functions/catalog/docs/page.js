// Shows the description that this very API serves, and sends requests to the API and to nobody else.

// The page is light or dark as the reader's system is, also when that changes.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#description",
  deepLinking: true,
  // A stored token would outlive the page.
  persistAuthorization: false,
  // No badge of a validator on another host.
  validatorUrl: null,
  defaultModelsExpandDepth: -1,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  syntaxHighlight: { activated: true, theme: "agate" },
});
