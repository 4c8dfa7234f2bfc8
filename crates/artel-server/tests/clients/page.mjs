// The page in a headless browser: `node page.mjs http://127.0.0.1:8000 /usr/bin/chromium`, after
// `npm install --no-save playwright-core`. Keyboard only, light and dark, wide and narrow.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [url, executablePath] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });

for (const colorScheme of ["light", "dark"]) {
  const page = await browser.newPage({ colorScheme });
  const wrong = [];
  const hosts = new Set();
  page.on("pageerror", (error) => wrong.push(String(error)));
  page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
  page.on("request", (request) => hosts.add(new URL(request.url()).host));
  await page.goto(url);
  await page.keyboard.type("A farm has 14 hens and each hen lays 5 eggs. How many eggs are there?");
  await page.keyboard.press("Enter");
  const footer = page.locator(".assistant footer", { hasText: "tokens" });
  await footer.waitFor({ timeout: 30_000 });
  assert.match(await page.locator(".assistant").innerText(), /#### 70/);
  // The next reading of the metrics holds the tokens of the answer.
  await page.waitForFunction(
    () => document.getElementById("experts-text").textContent.includes("Most uneven"),
    null,
    { timeout: 10_000 },
  );
  const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = ground.match(/\d+/g).slice(0, 3).every((part) => part > 128);
  assert.equal(light, colorScheme === "light");
  const reached = new Set();
  for (let step = 0; step < 10; step += 1) {
    reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.tagName));
    await page.keyboard.press("Tab");
  }
  for (const control of ["text", "send", "new", "SUMMARY", "messages"]) assert.ok(reached.has(control), control);
  await page.locator("#text").fill("Count.");
  await page.locator("#text").press("Enter");
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => document.getElementById("stop").disabled, null, { timeout: 5_000 });
  await page.setViewportSize({ width: 360, height: 740 });
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
  assert.deepEqual(wrong, []);
  assert.deepEqual([...hosts], [new URL(url).host]);
  await page.close();
}
await browser.close();
console.log("the page works");
