/** `npm run docs`: writes what is generated of the documentation. */

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PACKAGE_ROOT } from '../../src/package-root.js'
import { readParts, withCapacity } from './capacity.js'
import { contractFiles, withSettings } from './documents.js'

const contracts = join(PACKAGE_ROOT, 'openapi')
const readme = join(PACKAGE_ROOT, 'README.md')
const scaling = join(PACKAGE_ROOT, 'docs', 'scaling.md')

mkdirSync(contracts, { recursive: true })
for (const [name, text] of Object.entries(await contractFiles())) writeFileSync(join(contracts, name), text)
writeFileSync(readme, withSettings(readFileSync(readme, 'utf8')))
writeFileSync(scaling, withCapacity(readFileSync(scaling, 'utf8'), readParts()))
