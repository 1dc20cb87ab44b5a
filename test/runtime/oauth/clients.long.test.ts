/** The OAuth side as a library of another language sees it. */

import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import t from 'tap'
import { PACKAGE_ROOT } from '../../../src/package-root.js'
import { startService } from '../../helpers/service.js'

/** In the virtual environment of the tests, which `.ci/run` makes. */
const inPython = (program: string, input = '') => spawnSync(join(PACKAGE_ROOT, '.programs/bin/python'), ['-c', program], { input, encoding: 'utf8' })
const withoutAuthlib = inPython('import authlib').status !== 0 && 'Authlib is not installed'

t.test('Authlib finds nothing wrong with the metadata', { skip: withoutAuthlib }, async (t) => {
  const service = await startService(t, { PUBLIC_URL: 'https://keys.example.com' })
  const { text } = await service.call('GET', '/.well-known/oauth-authorization-server')
  const validate = 'import json, sys; from authlib.oauth2.rfc8414 import AuthorizationServerMetadata; AuthorizationServerMetadata(json.load(sys.stdin)).validate()'
  const { status, stderr } = inPython(validate, text)
  t.same([status, stderr.trim().split('\n').at(-1)], [0, ''])
})
