#!/usr/bin/env node
/** Where the program begins: what has to be so before any other module is loaded, and then the command line. */

import * as module from 'node:module'
import { join } from 'node:path'
import { PACKAGE_ROOT } from './package-root.js'

cacheCompiledCode()
silenceEd25519()
await import('./cli/command-line.js')

/**
 * Lets Node.js keep what it compiles, from 22.1 on. In a folder of the installation's own: whoever can write to it can write the program,
 * which is not so of the folder for temporary files that is the default. Where it cannot be written to, nothing is kept.
 */
function cacheCompiledCode(): void {
  const { enableCompileCache } = module as { enableCompileCache?: (folder: string) => unknown }
  enableCompileCache?.(join(PACKAGE_ROOT, 'node_modules', '.cache', 'mecha-keys'))
}

/** Early releases of Node.js 20 call Ed25519 an experiment, on standard error, at every start. Nothing about it changed afterwards. */
function silenceEd25519(): void {
  const warn = process.emitWarning.bind(process) as (...warning: unknown[]) => void
  process.emitWarning = (...warning: unknown[]) => {
    if (warning[1] !== 'ExperimentalWarning' || !String(warning[0]).includes('Ed25519')) warn(...warning)
  }
}
