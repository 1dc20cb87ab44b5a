/** A real browser. */

import { spawnSync } from 'node:child_process'
import { createServer } from 'node:http'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { chromium, type Browser } from 'playwright-core'
import type { Test } from 'tap'

const { stdout } = spawnSync('sh', ['-c', 'command -v chromium || command -v chromium-browser || command -v google-chrome'], { encoding: 'utf8' })
const CHROMIUM = stdout.trim()

/** For tests without a browser: why they are skipped. CI installs one, and fails without it. */
export const NO_BROWSER = CHROMIUM === '' && !process.env['CI'] && 'no Chromium is installed (on Debian: apt-get install chromium)'

/** Starts Chromium. It ends with the test. */
export async function openBrowser(t: Test): Promise<Browser> {
  if (CHROMIUM === '') throw new Error('no Chromium is installed, and CI has to have one')
  const browser = await chromium.launch({ executablePath: CHROMIUM })
  t.teardown(() => browser.close())
  return browser
}

/** Serves an empty page for a frontend to run in. Resolves to its origin, which is of no service in a test. */
export async function startFrontend(t: Test): Promise<string> {
  const server = createServer((_request, response) => response.setHeader('content-type', 'text/html').end('<!doctype html><title>Console</title>')).listen(0, 'localhost')
  await once(server, 'listening')
  t.teardown(() => server.close())
  return `http://localhost:${(server.address() as AddressInfo).port}`
}
