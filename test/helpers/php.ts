/** An application in PHP, which reads headers as CGI has them: `X-Mecha-Id` and `X.Mecha.Id` alike are `HTTP_X_MECHA_ID`. */

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { freePort } from '../../src/db/embedded/free-port.js'
import { runProgram, temporaryFolder } from './programs.js'

const TELL = `<?php
header('Content-Type: application/json');
echo json_encode(array_filter($_SERVER, fn($name) => str_starts_with($name, 'HTTP_'), ARRAY_FILTER_USE_KEY));
`

/** Starts it, and resolves to its URL. It answers with the variables that it made of the headers. */
export async function startPhp(t: Pick<Test, 'teardown'>): Promise<string> {
  const folder = temporaryFolder(t)
  const port = await freePort()
  const script = join(folder, 'tell.php')
  writeFileSync(script, TELL)
  await runProgram(t, 'php', ['-n', '-S', `127.0.0.1:${port}`, script], port)
  return `http://127.0.0.1:${port}`
}
