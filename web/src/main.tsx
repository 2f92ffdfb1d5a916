import { render } from "preact";
import { App } from "./app";
import { connect } from "./server";
import { start, toast } from "./store";
import { applyTheme } from "./theme";
import { takeToken } from "./tools";

applyTheme();
takeToken();
render(<App />, document.getElementById("app")!);
start()
  .catch((error: unknown) => toast(`The conversations cannot be read: ${String(error)}`))
  .finally(() => void connect());
